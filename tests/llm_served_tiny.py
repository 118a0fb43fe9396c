"""A tiny random Llama that vLLM serves, adapters of it made with peft, and what transformers says they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def llama(folder: Path, *, seed: int = 1, hidden: int = 128, layers: int = 2) -> Path:
    """A Llama over bytes, 512 positions, float32, whose next token depends on all before it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *letters]
    pieces = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        intermediate_size=2 * hidden,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, *, seed: int = 2, rank: int = 8, strength: float = 0.3, **changed: Any) -> Path:
    """A LoRA of `base` with random weights in both matrices, saved by peft. `changed` are keys of LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 2 * rank, **changed}
    tuned: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=rank, **options))
    torch.manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=strength)
    tuned.save_pretrained(folder)
    return folder


def greedy(base: Path, prompt: str, *, tokens: int = 16, adapter: Path | None = None) -> list[int]:
    """The token ids that transformers, with peft where there is an adapter, generates greedily after a prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    encoded = AutoTokenizer.from_pretrained(base)(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.eval().generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            do_sample=False,
            max_new_tokens=tokens,
        )
    return out[0, encoded["input_ids"].shape[1] :].tolist()
