"""A language model, whole or with adapters, shared among two processes: the losses and the answers of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm_tiny
import pytest
from test_train_generation import spec_of
from test_train_loop import events, run
from test_train_parallel import shares, told, zero
from train_pair import Workers, train

from train.data import Prepared, prepare

pytestmark = pytest.mark.slow
BASE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 7,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.5,
    "max_length": 64,
    "warmup_ratio": 0,
}
LORA = {"lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("generation")
    llm_tiny.llama(place / "llama")
    llm_tiny.lines(place / "train.jsonl", llm_tiny.chats(24))
    return place


@pytest.fixture(scope="module")
def data(place: Path) -> Prepared:
    return prepare(spec(place), into=place / "data")


@pytest.fixture(scope="module")
def pair(place: Path) -> Iterator[Workers]:
    pair = Workers(place, 2)
    yield pair
    pair.close()


def spec(place: Path, **section: Any) -> Any:
    made = spec_of(place, {"train": "train.jsonl", "validation_split": 0.2}, train={**BASE, **section})
    return made.model_copy(update={"model": str(place / "llama")}).at(place)


@pytest.fixture(scope="module")
def alone(place: Path, data: Prepared) -> dict[str, list[dict[str, Any]]]:
    """The events of one process, for all weights and for adapters."""
    seen = {}
    for kind, section in (("full", {}), ("lora", LORA)):
        run(spec(place, **section), data, place / kind)
        seen[kind] = events(place / kind)
    return seen


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(
    "how", [{"parallel": "fsdp"}, zero(1), zero(2), zero(3)], ids=["fsdp", "zero1", "zero2", "zero3"]
)
def test_every_strategy_gives_the_losses_of_one_process(
    tmp_path: Path, place: Path, data: Prepared, pair: Workers, alone: Any, kind: str, how: dict[str, Any]
) -> None:
    section = {**how, "workers": 2, **(LORA if kind == "lora" else {})}
    answers = pair.all(train, spec(place, **section), data.folder, data.labels, tmp_path)
    assert not [one for one in answers if isinstance(one, BaseException)]
    seen = events(tmp_path)
    losses = told(seen, "train/loss")
    assert losses[0] - losses[-1] > 0.3, "it learns"
    assert losses == pytest.approx(told(alone[kind], "train/loss"), abs=2e-5)
    assert told(seen, "validation/loss") == pytest.approx(told(alone[kind], "validation/loss"), abs=2e-5)
    # What was saved is what one process saved, in the same layout.
    names = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
    ours, one = (weights(folder / "model" / names[kind]) for folder in (tmp_path, place / kind))
    assert ours.keys() == one.keys()
    for name, tensor in ours.items():
        assert tensor.numpy() == pytest.approx(one[name].numpy(), abs=2e-3), name
    assert any(abs(t - start).max() > 1e-2 for t, start in paired(ours, place, kind)), "it has moved"
    share = shares(tmp_path)
    stage = how.get("deepspeed", {}).get("zero_stage")
    assert share["strategy"] == (f"zero{stage}" if stage else "fsdp")
    if kind == "lora":
        assert sum(share["optimizer"]) < 0.2 * sum(share["parameters"]), "only adapters have an optimizer's state"


def weights(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def paired(ours: dict[str, Any], place: Path, kind: str) -> list[tuple[Any, Any]]:
    """Each weight with what it started from: the base's, or for the second matrix of an adapter nothing."""
    if kind == "lora":
        return [(tensor, 0 * tensor) for name, tensor in ours.items() if "lora_B" in name]
    before = weights(place / "llama" / "model.safetensors")
    return [(tensor, before[name]) for name, tensor in ours.items()]
