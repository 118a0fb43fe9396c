"""Judging a language model: perplexity counted directly, beside the base's, and a gate of which less is better."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import llm_tiny
import pytest
from pydantic import ValidationError
from test_train_generation import spec_of, trained
from test_train_loop import run
from test_train_score import judge

from cluster.errors import InputError, RunFailed
from cluster.spec import Spec, parse
from train.data import Prepared, prepare


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared, Path, Path]:
    """A base model, chats with a test split, the base tuned as a whole, and tuned by an adapter."""
    folder = tmp_path_factory.mktemp("world")
    base = llm_tiny.llama(folder / "llama")
    for name, first, count in (("train", 100, 30), ("test", 300, 7)):
        llm_tiny.lines(folder / f"{name}.jsonl", llm_tiny.chats(count, first=first))
    prepared = prepare(spec_of(folder, {"train": "train.jsonl", "test": "test.jsonl"}), into=folder / "home")
    run(trained(base, epochs=2, learning_rate=3e-3), prepared, folder / "full")
    run(trained(base, epochs=2, learning_rate=3e-3, lora={}), prepared, folder / "lora")
    return base, prepared, folder / "full" / "model", folder / "lora" / "model"


def judged(base: Path, *, gate: dict[str, float] | None = None, **train: Any) -> Spec:
    return trained(base, **train).model_copy(
        update={"evaluate": spec_of(base, {}, evaluate={"gate": gate or {}, "batch_size": 3}).evaluate}
    )


def direct(folder: Path, base: Path, prepared: Prepared) -> float:
    """The mean negative log likelihood of what the assistant says in the test rows, one row at a time, by hand."""
    import torch
    from peft import PeftModel
    from pyarrow import parquet
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / "adapter_config.json").exists():
        net: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    else:
        net = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for row in parquet.read_table(prepared.file("test")).to_pylist():
        user, assistant = (turn["content"] for turn in row["messages"])
        asked = tokenizer(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n").input_ids
        said = tokenizer(f"{assistant}<|im_end|>").input_ids
        with torch.no_grad():
            likely = net(input_ids=torch.tensor([asked + said])).logits[0].log_softmax(-1)
        total -= sum(likely[len(asked) + place - 1, token].item() for place, token in enumerate(said))
        count += len(said)
    return total / count


def test_perplexity_is_that_counted_by_hand_and_stands_beside_the_bases(
    world: tuple[Path, Prepared, Path, Path],
) -> None:
    base, prepared, full, lora = world
    before = math.exp(direct(base, base, prepared))
    for folder, train in ((full, {}), (lora, {"lora": {}})):
        found, recorder = judge(judged(base, **train), prepared, folder)
        loss = direct(folder, base, prepared)
        assert (found.split, found.rows) == ("test", 7)
        assert found.metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert found.metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert found.metrics["base_perplexity"] == pytest.approx(before, rel=1e-5)
        assert found.metrics["perplexity"] < 0.99 * before
        assert recorder.metrics[("r1", "test/perplexity")] == found.metrics["perplexity"]
        assert set(recorder.files) == {"evaluation/evaluation.json", "evaluation/table.txt"} == set(found.files)
        told = json.loads(recorder.files["evaluation/evaluation.json"])
        assert (told["labels"], told["per_class"], told["confusion"]) == ([], [], [])
        shown = ", ".join(f"{name} {found.metrics[name]:.4f}" for name in ("perplexity", "loss", "base_perplexity"))
        assert found.table() == f"test, 7 rows: {shown}"


def test_a_gate_of_which_less_is_better(world: tuple[Path, Prepared, Path, Path]) -> None:
    base, prepared, full, _ = world
    found, _ = judge(judged(base), prepared, full)
    value = found.metrics["perplexity"]
    passed, recorder = judge(judged(base, gate={"perplexity": 250}), prepared, full)
    assert passed.passed
    assert passed.gate_text() == f"perplexity {value:.6g} is at most 250"
    assert passed.table().splitlines()[-1] == f"gate: {passed.gate_text()}"
    told = json.loads(recorder.files["evaluation/evaluation.json"])["gate"]["perplexity"]
    assert told == {"value": pytest.approx(value), "most": 250, "reached": True}
    failed, _ = judge(judged(base, gate={"perplexity": 1.5}), prepared, full)
    assert not failed.passed
    assert failed.gate_text() == f"perplexity {value:.6g} is above 1.5"


def test_gates_within_reach_only() -> None:
    def gate(text: str) -> dict[str, float]:
        return parse(f"name: a\ntask: text-generation\nmodel: m\nevaluate:\n  gate: {text}\n").evaluate.gate

    assert gate("{perplexity: 12}") == {"perplexity": 12}
    for text, told in (
        ("{perplexity: 0.5}", "spec:5: evaluate.gate.perplexity: 0.5: the best perplexity there is is 1; write more"),
        ("{perplexity: .nan}", "evaluate.gate.perplexity"),
        ("{perplexity: true}", "true and false are no numbers"),
        ("{accuracy: 12}", "spec:5: evaluate.gate.accuracy: 12: input should be less than or equal to 1"),
        ("{accuracy: -1}", "spec:5: evaluate.gate.accuracy: -1: input should be greater than or equal to 0"),
    ):
        with pytest.raises(InputError, match=told.replace(".", r"\.")):
            gate(text)
    with pytest.raises(ValidationError):
        Spec.model_validate({"name": "a", "task": "t", "model": "m", "evaluate": {"gate": {"perplexity": 0}}})


def test_models_that_cannot_be_judged(world: tuple[Path, Prepared, Path, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base, prepared, full, lora = world
    with pytest.raises(InputError, match=r"train\.max_length: 4 tokens, and in none of 7 rows"):
        judge(judged(base, max_length=4), prepared, full)
    other = llm_tiny.llama(tmp_path / "other", tied=False)
    with pytest.raises(InputError, match=r"is not what the adapter in .* was trained on"):
        judge(judged(other, lora={}), prepared, lora)
    with pytest.raises(InputError, match=r"gone: no such folder; name a model folder"):
        judge(judged(tmp_path / "gone", lora={}), prepared, lora)
    broken: Any = AutoModelForCausalLM.from_pretrained(full)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    broken.save_pretrained(tmp_path / "broken")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "broken" / file).write_bytes((full / file).read_bytes())
    with pytest.raises(RunFailed, match="answers no numbers"):
        judge(judged(base), prepared, tmp_path / "broken")
