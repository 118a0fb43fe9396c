"""A tiny real language model for tests: a Llama whose tokens are bytes, with a chat template, and rows to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# ChatML, without a system turn of its own.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def llama(folder: Path, *, template: str | None = TEMPLATE, weights: bool = True, tied: bool = True) -> Path:
    """A Llama folder of about 100,000 parameters, random by a fixed seed; a byte of text is a token of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=tied,
        architectures=["LlamaForCausalLM"],
    )
    if weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


def chats(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Rows of `messages`: a number, and the number in words; those from `first` on."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    rows = []
    for number in range(first, first + count):
        said = " ".join(words[int(digit)] for digit in str(number))
        turns = [{"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": said}]
        rows.append({"messages": turns})
    return rows


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
