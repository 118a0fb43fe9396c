"""What one worker does, without Ray: order and shares of rows, exact losses, resuming, damage, early stopping."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import train_tiny as tiny

from cluster.errors import InputError, RunFailed
from cluster.spec import Spec, Train


class Alone:
    """One worker that keeps every checkpoint; it may be told to die when it reports one."""

    rank, workers, local_workers, device = 0, 1, 1, "cpu"

    def __init__(self, *, dies_at: int | None = None) -> None:
        self.kept: list[tuple[Path, dict[str, float]]] = []
        self.dies_at = dies_at

    def report(self, metrics: dict[str, float], folder: Path | None) -> None:
        assert folder is not None
        self.kept.append((folder, metrics))
        if metrics["step"] == self.dies_at:
            raise KeyboardInterrupt

    def checkpoints(self) -> list[tuple[Path, dict[str, float]]]:
        return list(self.kept)


def run(spec: Spec, prepared: tiny.Prepared, folder: Path, session: Alone | None = None) -> dict[str, float]:
    from train.job import Job
    from train.loop import loop

    return loop(Job(spec, prepared.folder, prepared.labels, Path(spec.model), folder), session or Alone())


def curve(folder: Path) -> dict[int, float]:
    """Training loss by step; of a step that was done twice, the last."""
    return {
        event["step"]: event["metrics"]["train/loss"]
        for event in events(folder)
        if "train/loss" in event.get("metrics", {})
    }


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny.Prepared:
    return tiny.text_data(tmp_path_factory.mktemp("data") / "d0", rows=23, held_out=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("model"))


def test_the_learning_rate_rises_then_falls_by_the_schedule() -> None:
    from train.optim import learning_rate

    linear = Train(learning_rate=1.0, warmup_ratio=0.2)
    assert [learning_rate(step, 10, linear) for step in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    cosine = Train(learning_rate=2.0, warmup_ratio=0, schedule="cosine")
    assert [learning_rate(step, 4, cosine) for step in range(4)] == pytest.approx(
        [2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4)]
    )
    constant = Train(learning_rate=3.0, warmup_ratio=0.5, schedule="constant")
    assert [learning_rate(step, 4, constant) for step in range(4)] == pytest.approx([1, 2, 3, 3])


def test_an_epoch_is_every_row_once_in_another_order() -> None:
    from train.batches import batch_of

    epochs = [
        np.concatenate([batch_of(step, rows=23, batch_size=5, seed=1) for step in range(start, start + 5)])
        for start in (0, 5)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 2
    assert list(epochs[0]) != list(epochs[1])
    assert list(batch_of(0, rows=23, batch_size=5, seed=2)) != list(epochs[0][:5])
    assert [len(batch_of(step, rows=23, batch_size=5, seed=1)) for step in (4, 5)] == [3, 5]


def test_workers_share_a_batch_and_padding_weighs_nothing() -> None:
    from train.batches import share

    batch = np.array([7, 3, 9, 1, 4])
    shares = [share(batch, rank=rank, workers=2, pieces=2) for rank in (0, 1)]
    assert [[list(rows) for rows, _ in pieces] for pieces in shares] == [[[7, 3], [9, 1]], [[4, 7], [7, 7]]]
    real = np.concatenate([real for pieces in shares for _, real in pieces])
    assert list(real) == [True] * 5 + [False] * 3


def test_steps_and_marks_with_fractions_of_epochs() -> None:
    from train.batches import steps_of

    assert steps_of(23, batch_size=5, epochs=2, checkpoints_per_epoch=1) == (5, 10, {5, 10})
    assert steps_of(23, batch_size=5, epochs=1.5, checkpoints_per_epoch=2) == (5, 8, {3, 5, 8})
    assert steps_of(3, batch_size=16, epochs=0.01, checkpoints_per_epoch=3) == (1, 1, {1})


def test_what_the_prefetch_thread_raises_arrives_in_its_place() -> None:
    from train.batches import prefetch

    def items():
        yield 1
        yield 2
        raise InputError("the third")

    ahead = prefetch(items(), depth=1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(InputError, match="the third"):
        next(ahead)


def test_float16_needs_a_gpu() -> None:
    from train.optim import arithmetic

    with pytest.raises(InputError, match=r"train\.precision: float16 needs a GPU; write auto"):
        arithmetic(Train(precision="float16"), "cpu")
    assert str(arithmetic(Train(precision="bfloat16"), "cpu")) == "torch.bfloat16"
    assert str(arithmetic(Train(), "cpu")) == "torch.float32"


def test_biases_and_norms_do_not_decay(model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from train.optim import optimizer

    net = AutoModelForSequenceClassification.from_pretrained(model)
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer(net, Train(weight_decay=0.3)).param_groups
        for parameter in group["params"]
    }
    by_name = {name: decays[id(parameter)] for name, parameter in net.named_parameters()}
    assert len(by_name) == len(decays)
    assert {name for name, decay in by_name.items() if not decay} == {
        name for name in by_name if name.endswith(".bias") or "LayerNorm" in name
    }


@pytest.mark.parametrize(("batch", "pieces", "weighing"), [(5, 2, "balanced"), (5, 3, "none")])
def test_losses_are_those_of_a_plain_loop(
    tmp_path: Path, data: tiny.Prepared, model: Path, batch: int, pieces: int, weighing: str
) -> None:
    spec = tiny.spec(
        model,
        epochs=2,
        batch_size=batch,
        gradient_accumulation_steps=pieces,
        class_weights=weighing,
        learning_rate=5e-3,
        warmup_ratio=0,
        schedule="constant",
        max_grad_norm=0.5,
    )
    metrics = run(spec, data, tmp_path / "run")
    losses, validation = plain_loop(spec, data)
    assert list(curve(tmp_path / "run").values()) == pytest.approx(losses, abs=1e-5)
    last = [
        e["metrics"]["validation/loss"] for e in events(tmp_path / "run") if "validation/loss" in e.get("metrics", {})
    ]
    assert last[-1] == pytest.approx(validation, abs=1e-5)
    assert metrics["validation/loss"] == min(last)


def plain_loop(spec: Spec, prepared: tiny.Prepared) -> tuple[list[float], float]:
    """The same training as anyone would write it: whole batches, cross_entropy(weight=), torch's AdamW."""
    import torch
    from pyarrow import parquet
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from train.batches import batch_of

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    net = AutoModelForSequenceClassification.from_pretrained(spec.model).train()
    rows, held_out = (parquet.read_table(prepared.file(split)).to_pylist() for split in ("train", "validation"))
    labels = torch.tensor([row["label"] for row in rows])
    weight = None
    if spec.train.class_weights == "balanced":
        weight = len(labels) / (2 * torch.bincount(labels, minlength=2).float())
    parameters = dict(net.named_parameters())
    plain = [p for name, p in parameters.items() if name.endswith("bias") or "LayerNorm" in name]
    matrices = [p for name, p in parameters.items() if not (name.endswith("bias") or "LayerNorm" in name)]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0}], lr=spec.train.learning_rate
    )

    def loss_of(chosen: list[dict]) -> torch.Tensor:
        inputs = tokenizer([row["text"] for row in chosen], padding=True, return_tensors="pt")
        target = torch.tensor([row["label"] for row in chosen])
        return torch.nn.functional.cross_entropy(net(**inputs).logits, target, weight=weight)

    losses = []
    steps = math.ceil(len(rows) / spec.train.batch_size) * 2
    for step in range(steps):
        batch = batch_of(step, rows=len(rows), batch_size=spec.train.batch_size, seed=spec.train.seed)
        loss = loss_of([rows[index] for index in batch])
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), spec.train.max_grad_norm)
        adamw.step()
        losses.append(loss.item())
    net.eval()
    with torch.no_grad():
        return losses, loss_of(held_out).item()


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path, data: tiny.Prepared) -> None:
    spec = tiny.spec(
        tiny.bert(tmp_path / "model", dropout=0.2), epochs=3, batch_size=6, learning_rate=5e-3, checkpoints_per_epoch=2
    )
    run(spec, data, tmp_path / "whole")
    session = Alone(dies_at=6)
    with pytest.raises(KeyboardInterrupt):
        run(spec, data, tmp_path / "killed", session)
    before = curve(tmp_path / "killed")
    assert max(before) == 6
    session.dies_at = None
    run(spec, data, tmp_path / "killed", session)
    assert [event["resumed"] for event in events(tmp_path / "killed") if "resumed" in event] == [0, 6]
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    # Another seed is another run: the equality above is not for want of randomness.
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"seed": 1})})
    run(other, data, tmp_path / "other")
    assert curve(tmp_path / "other") != curve(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "all"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, data: tiny.Prepared, model: Path, damage: str) -> None:
    spec = tiny.spec(model, epochs=3, batch_size=12, learning_rate=5e-3)
    session = Alone()
    run(spec, data, tmp_path / "run", session)
    whole = weights(tmp_path / "run")
    newest = session.kept[-1][0]
    match damage:
        case "cut":
            (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])
        case "altered":
            raw = bytearray((newest / "model.safetensors").read_bytes())
            raw[-1] ^= 1
            (newest / "model.safetensors").write_bytes(raw)
        case "gone":
            (newest / "state.json").unlink()
        case "all":
            for folder, _ in session.kept:
                (folder / "state.json").write_text("{")
    run(spec, data, tmp_path / "run", session)
    assert weights(tmp_path / "run") == whole
    seen = events(tmp_path / "run")
    resumed = [event["resumed"] for event in seen if "resumed" in event]
    warnings = [event["warning"] for event in seen if "warning" in event]
    assert warnings[0] == f"checkpoint {newest.name} is damaged; trying the one before it"
    if damage == "all":
        assert resumed == [0, 0]
        assert warnings[-1] == "no checkpoint is whole; starting again from the first step"
    else:
        assert resumed == [0, 4]
        assert len(warnings) == 1


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    import torch

    from train.checkpoint import load_optimizer

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"optimizer": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_optimizer(tmp_path, "cpu")
    assert not (tmp_path / "owned").exists()


def test_training_ends_early_and_keeps_the_best(tmp_path: Path, data: tiny.Prepared, model: Path) -> None:
    # So large a rate that it gets worse at some point.
    spec = tiny.spec(
        model, epochs=40, batch_size=12, learning_rate=0.03, schedule="constant", early_stopping_patience=2
    )
    session = Alone()
    metrics = run(spec, data, tmp_path / "run", session)
    judged = [reported["judged"] for _, reported in session.kept]
    best = min(range(len(judged)), key=lambda i: (judged[i], -i))
    assert len(judged) == best + 3 < 40, "two validations without a better loss, and not one more"
    assert metrics["step"] == session.kept[best][1]["step"]
    assert metrics["validation/loss"] == judged[best]

    from safetensors.torch import load_file

    kept, saved = (load_file(p / "model.safetensors") for p in (session.kept[best][0], tmp_path / "run" / "model"))
    assert all((kept[name] == saved[name]).all() for name in saved)
    # Stopped is stopped: a run that is resumed after that trains no further.
    run(spec, data, tmp_path / "run", session)
    assert len(session.kept) == best + 3


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, data: tiny.Prepared) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny.bert(tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        RunFailed, match=r"the training loss is nan at step 0; try a lower train\.learning_rate \(now 0"
    ):
        run(tiny.spec(broken, learning_rate=0.01), data, tmp_path / "run")


def test_bfloat16_on_a_cpu_learns_nearly_the_same(tmp_path: Path, data: tiny.Prepared, model: Path) -> None:
    full, half = (
        tiny.spec(model, epochs=1, batch_size=8, precision=precision) for precision in ("float32", "bfloat16")
    )
    run(full, data, tmp_path / "full")
    run(half, data, tmp_path / "half")
    pairs = list(zip(curve(tmp_path / "full").values(), curve(tmp_path / "half").values(), strict=True))
    assert all(a == pytest.approx(b, abs=0.02) for a, b in pairs)
    assert any(a != b for a, b in pairs)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    import torch

    from train import checkpoint

    def no_room(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(torch, "save", no_room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(RunFailed, match=r"disk full: a checkpoint takes about .* set SHOAL_HOME"):
        checkpoint.save(tmp_path / "c", {"w": torch.zeros(2, 2)}, {"optimizer": {}}, {})
    assert not (tmp_path / "c").exists()


def test_losses_fall_on_rows_that_can_be_learned(tmp_path: Path, model: Path) -> None:
    prepared = tiny.text_data(tmp_path / "data", rows=200, held_out=50, noise=0)
    metrics = run(tiny.spec(model, epochs=6, batch_size=20, learning_rate=1e-2), prepared, tmp_path / "run")
    losses = list(curve(tmp_path / "run").values())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert metrics["validation/accuracy"] >= 0.9
    rates = [
        e["metrics"]["train/learning_rate"]
        for e in events(tmp_path / "run")
        if "train/learning_rate" in e.get("metrics", {})
    ]
    assert all(a > b for a, b in pairwise(rates[5:]))
