"""How workers share a model: the same losses, the share each holds, resuming, damage; two processes over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import train_tiny as tiny
from test_train_loop import curve, events, run, weights
from train_pair import Session, Workers, train

from cluster.errors import RunFailed

slow = pytest.mark.slow

FSDP = {"parallel": "fsdp"}
DDP = {"parallel": "ddp"}
BASE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 5,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-2,
    "warmup_ratio": 0,
    "schedule": "constant",
    "max_grad_norm": 0.5,
    "class_weights": "balanced",
}


def zero(stage: int, offload: str = "none") -> dict[str, Any]:
    return {"parallel": "deepspeed", "deepspeed": {"zero_stage": stage, "offload": offload}}


STRATEGIES = {
    "ddp": DDP,
    "fsdp": FSDP,
    **{f"zero{stage}": zero(stage) for stage in (1, 2, 3)},
    **{f"zero{stage}-offload": zero(stage, "cpu") for stage in (2, 3)},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def pair(place: Path) -> Iterator[Workers]:
    pair = Workers(place, 2)
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def data(place: Path) -> tiny.Prepared:
    # 23 rows in batches of 5 for 2 workers of 2 passes: no batch divides.
    return tiny.text_data(place / "data" / "d0", rows=23, held_out=35, noise=0)


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    return tiny.bert(place / "model")


@pytest.fixture(scope="module")
def alone(place: Path, data: tiny.Prepared, model: Path) -> list[dict[str, Any]]:
    """The events of one process."""
    run(tiny.spec(model, **BASE), data, place / "alone")
    return events(place / "alone")


def both(pair: Workers, folder: Path, data: tiny.Prepared, model: Path, **section: Any) -> list[Any]:
    spec = tiny.spec(model, **{**BASE, "workers": 2, **section})
    return pair.all(train, spec, data.folder, data.labels, folder)


def told(seen: list[dict[str, Any]], metric: str) -> list[float]:
    return [event["metrics"][metric] for event in seen if metric in event.get("metrics", {})]


def shares(folder: Path) -> dict[str, Any]:
    return next(event["parallel"] for event in events(folder) if "parallel" in event)


@slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_losses_are_those_of_one_process(
    tmp_path: Path, pair: Workers, data: tiny.Prepared, model: Path, alone: list[dict[str, Any]], name: str
) -> None:
    first, second = both(pair, tmp_path, data, model, **STRATEGIES[name])
    assert first["step"] > 0, "the lead has the metrics of the best checkpoint"
    assert second.keys() >= {"validation/loss"}
    seen = events(tmp_path)
    losses = told(seen, "train/loss")
    assert len(losses) == 15
    assert max(losses) - min(losses) > 0.05, "it learns: equality is not for want of steps"
    assert losses == pytest.approx(told(alone, "train/loss"), abs=2e-6)
    assert told(seen, "train/grad_norm") == pytest.approx(told(alone, "train/grad_norm"), rel=1e-4)
    assert max(told(seen, "train/grad_norm")) > 0.5, "something was clipped"
    # 35 rows are two batches: the second worker's last one is padding.
    assert told(seen, "validation/loss") == pytest.approx(told(alone, "validation/loss"), abs=2e-6)
    assert told(seen, "validation/accuracy") == told(alone, "validation/accuracy")

    # Hugging Face layout, of whole weights: whoever opens it gets the loss that was told of the best checkpoint.
    assert loss_of(tmp_path / "model", data) == pytest.approx(first["validation/loss"], abs=2e-6)
    assert abs(loss_of(model, data) - first["validation/loss"]) > 1e-3


def loss_of(folder: Path, data: tiny.Prepared) -> float:
    """The loss over the validation rows, by transformers alone."""
    import torch
    from pyarrow import parquet
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows, learned = (parquet.read_table(data.file(split)).to_pydict() for split in ("validation", "train"))
    net = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(rows["text"], padding=True, return_tensors="pt")
    counts = torch.bincount(torch.tensor(learned["label"]), minlength=2)
    with torch.no_grad():
        logits = net(**inputs).logits
    weight = len(learned["label"]) / (2 * counts.float())
    return torch.nn.functional.cross_entropy(logits, torch.tensor(rows["label"]), weight=weight).item()


@slow
@pytest.mark.parametrize(
    ("name", "parameters", "optimizer"),
    # The model has 12,506 elements, of which the largest group decays; AdamW keeps two moments of each.
    [
        ("ddp", [12506, 12506], [25012, 25012]),
        ("fsdp", [6253, 6253], [12506, 12506]),
        ("zero1", [12506, 12506], [12508, 12508]),
        ("zero2", [12506, 12506], [12508, 12508]),
        ("zero2-offload", [12506, 12506], [12508, 12508]),
        ("zero3", [6253, 6253], [12506, 12506]),
        ("zero3-offload", [6253, 6253], [12506, 12506]),
    ],
)
def test_a_worker_holds_its_share(
    tmp_path: Path,
    pair: Workers,
    data: tiny.Prepared,
    model: Path,
    name: str,
    parameters: list[int],
    optimizer: list[int],
) -> None:
    both(pair, tmp_path, data, model, **{**STRATEGIES[name], "epochs": 0.1})
    found = shares(tmp_path)
    assert (found["strategy"], found["parameters"], found["optimizer"]) == (name[:5].rstrip("-"), parameters, optimizer)


@slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero1", "zero2", "zero3", "zero3-offload"])
def test_a_killed_run_goes_on_with_the_same_bits(
    tmp_path: Path, pair: Workers, data: tiny.Prepared, place: Path, name: str
) -> None:
    dropping = place / "dropping"
    if not dropping.exists():
        tiny.bert(dropping, dropout=0.2)
    section = {**BASE, **STRATEGIES[name], "workers": 2, "epochs": 3, "checkpoints_per_epoch": 2}
    spec = tiny.spec(dropping, **section)
    answers = pair.all(killed_and_resumed, spec, data.folder, data.labels, tmp_path)
    assert answers == [None, None], answers
    assert [event["resumed"] for event in events(tmp_path / "killed") if "resumed" in event] == [0, 8]
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def killed_and_resumed(session: Session, spec: Any, data: Path, labels: list[str], folder: Path) -> None:
    """A whole run, and one of which both workers die at step 8; it goes on in a process that knows nothing of it."""
    train(Session(session.rank), spec, data, labels, folder / "whole")
    session.dies_at = 8
    with pytest.raises(KeyboardInterrupt):
        train(session, spec, data, labels, folder / "killed")
    session.dies_at = None
    train(session, spec, data, labels, folder / "killed")


@slow
@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero3"])
def test_every_workers_files_count(tmp_path: Path, pair: Workers, data: tiny.Prepared, model: Path, name: str) -> None:
    section = {**BASE, **STRATEGIES[name], "workers": 2, "epochs": 3}
    answers = pair.all(damaged, tiny.spec(model, **section), data.folder, data.labels, tmp_path)
    assert answers == [None, None], answers
    seen = events(tmp_path)
    assert [event["resumed"] for event in seen if "resumed" in event] == [0, 10]
    (warning,) = [event["warning"] for event in seen if "warning" in event]
    assert warning.endswith("is damaged; trying the one before it")
    assert (tmp_path / "before").read_bytes() == weights(tmp_path)


def damaged(session: Session, spec: Any, data: Path, labels: list[str], folder: Path) -> None:
    """The last file of worker 1 is cut short, and the run is asked for again."""
    from train.parallel import everyone

    train(session, spec, data, labels, folder)
    if session.rank == 0:
        (folder / "before").write_bytes(weights(folder))
        file = session.kept[-1][0] / "optimizer-1.pt"
        file.write_bytes(file.read_bytes()[:-50])
    everyone(None, 2)
    train(session, spec, data, labels, folder)


@slow
@pytest.mark.parametrize("name", ["fsdp", "zero1", "zero2", "zero3"])
def test_16_bit_learns_nearly_the_same(
    tmp_path: Path, pair: Workers, data: tiny.Prepared, model: Path, alone: list[dict[str, Any]], name: str
) -> None:
    both(pair, tmp_path, data, model, **STRATEGIES[name], precision="bfloat16")
    losses = told(events(tmp_path), "train/loss")
    assert losses == pytest.approx(told(alone, "train/loss"), abs=0.02)
    assert losses != told(alone, "train/loss")


@slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_loss_that_is_no_number_ends_all_workers(
    tmp_path: Path, pair: Workers, data: tiny.Prepared, name: str
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny.bert(tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    answers = both(pair, tmp_path / "run", data, broken, **STRATEGIES[name])
    for answer in answers:
        assert isinstance(answer, RunFailed)
        assert "the training loss is nan at step 0; try a lower train.learning_rate (now 0.02)" in answer.message


@slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_frozen_weights_are_neither_moved_nor_stored(
    tmp_path: Path, pair: Workers, data: tiny.Prepared, model: Path, name: str
) -> None:
    """Only the head learns: 2 x 24 weights and 2 biases."""
    section = {**BASE, **STRATEGIES[name], "workers": 2, "max_grad_norm": 0}
    answers = pair.all(head_only, tiny.spec(model, **section), data.folder, data.labels, tmp_path)
    assert answers == [{"classifier.weight", "classifier.bias"}] * 2, answers
    assert max(shares(tmp_path)["optimizer"]) == {"ddp": 100, "fsdp": 50, "zero2": 52, "zero3": 50}[name]

    from safetensors.torch import load_file

    was, now = load_file(model / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert {key for key in was if (was[key] != now[key]).any()} == {"classifier.weight", "classifier.bias"}
    unshared = tmp_path.parent / "head-of-one"
    if not unshared.exists():
        with freezing():
            run(tiny.spec(model, **{**BASE, "max_grad_norm": 0}), data, unshared)
    losses = [list(curve(folder).values()) for folder in (tmp_path, unshared)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def head_only(session: Session, spec: Any, data: Path, labels: list[str], folder: Path) -> set[str]:
    from safetensors import safe_open

    with freezing():
        train(session, spec, data, labels, folder)
    with safe_open(session.kept[-1][0] / "model.safetensors", "pt") as stored:
        return set(stored.keys())


@contextlib.contextmanager
def freezing() -> Iterator[None]:
    """All weights but the head's are frozen as a model is set up, as adapters leave them."""
    from train.tasks.text import TextClassification

    setup = TextClassification.setup

    def frozen(self: Any, *arguments: Any, **named: Any) -> Any:
        model = setup(self, *arguments, **named)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassification, "setup", frozen)
        yield


@slow
def test_one_worker_may_use_any_strategy(
    tmp_path: Path, data: tiny.Prepared, model: Path, alone: list[dict[str, Any]]
) -> None:
    single = Workers(tmp_path, 1)
    try:
        for name in ("fsdp", "zero2-offload", "zero3"):
            spec = tiny.spec(model, **{**BASE, **STRATEGIES[name]})
            (answer,) = single.all(train, spec, data.folder, data.labels, tmp_path / name)
            assert "validation/loss" in answer, answer
            losses = told(events(tmp_path / name), "train/loss")
            assert losses == pytest.approx(told(alone, "train/loss"), abs=2e-6)
            assert shares(tmp_path / name)["parameters"] == [12506]
    finally:
        single.close()


@slow
def test_a_run_that_shares_nothing_is_refused(tmp_path: Path, pair: Workers, data: tiny.Prepared, model: Path) -> None:
    answers = pair.all(unshared, tiny.spec(model, **{**BASE, **FSDP, "workers": 2}), data.folder, data.labels, tmp_path)
    for rank, answer in enumerate(answers):
        assert isinstance(answer, RunFailed)
        assert f"train.parallel: fsdp: worker {rank} holds 12,506 elements of parameters" in answer.message
        assert "its share is 6,253 and" in answer.message
    assert not list(tmp_path.glob("checkpoint-*"))


def unshared(session: Session, spec: Any, data: Path, labels: list[str], folder: Path) -> None:
    """FSDP as a library that quietly does nothing."""
    from train.parallel import fsdp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp, "fully_shard", lambda module, **_: module)
        train(session, spec, data, labels, folder)


@slow
def test_the_names_of_deepspeeds_inside(pair: Workers, data: tiny.Prepared, model: Path, tmp_path: Path) -> None:
    """What train.parallel.deepspeed reads and sets by name does what it is read and set for."""
    for stage, offload in ((1, "none"), (2, "cpu"), (3, "none")):
        spec = tiny.spec(model, **{**BASE, **zero(stage, offload), "workers": 2})
        answers = pair.all(inside, spec, data.folder, data.labels, tmp_path / f"{stage}")
        assert answers == [None, None], answers


def inside(session: Session, spec: Any, data: Path, labels: list[str], folder: Path) -> None:
    import os

    import deepspeed
    import torch

    from train.job import Job
    from train.parallel.deepspeed import Zero
    from train.tasks import trainer

    folder.mkdir(exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
    stage, offload = spec.train.deepspeed.zero_stage, spec.train.deepspeed.offload == "cpu"
    job = Job(spec, data, labels, Path(spec.model), folder)
    task = trainer(spec.task)
    model = task.setup(job.model, labels=labels, from_scratch=False, seed=1, max_length=128)
    names = [name for name, _ in model.named_parameters()]
    strategy = Zero(model, spec.train, session, torch.float32)
    engine: Any = strategy.net
    assert engine.gradient_clipping() == spec.train.max_grad_norm
    assert engine.zero_optimization_stage() == stage
    assert (engine.zero_offload_optimizer() is not None) == offload
    assert deepspeed.comm.comm.cdb.shm_comm_op is None, "the all-reduce for inference is not compiled"

    # The flat float32 weights are AdamW's; their sum is the model's, and refresh_fp32_params copies the model's over.
    optimizer = engine.optimizer
    flats = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert all(flat.dtype == torch.float32 and flat.ndim == 1 for flat in flats)
    assert [len(group["params"]) for group in optimizer.param_groups] == ([0, 0] if stage == 3 else [1, 1])
    before = [flat.detach().clone() for flat in flats]
    with torch.no_grad():
        for flat in flats:
            flat.fill_(7.0)
    optimizer.refresh_fp32_params()
    assert all(torch.equal(flat, was) for flat, was in zip(flats, before, strict=True))
    assert isinstance(optimizer.loss_scaler.cur_scale, (int, float))

    # A step of no gradient and no rate: the moments lie where they should, and the weights stay.
    inputs = task.collate([{"text": "good1 bad2", "label": 0}])
    target = inputs.pop("labels")
    with strategy.piece(last=True):
        strategy.backward(torch.nn.functional.cross_entropy(engine(**inputs).logits, target) * 0)
    assert strategy.step(0.0) == 0.0
    states = [optimizer.optimizer.state[flat] for flat in flats]
    assert all(state["exp_avg"].shape == flat.shape for state, flat in zip(states, flats, strict=True))
    assert {state["exp_avg"].device.type for state in states} == {"cpu"}
    assert all(torch.equal(flat, was) for flat, was in zip(flats, before, strict=True))
    if stage == 3:
        parameters = dict(engine.module.named_parameters())
        assert list(parameters) == names
        assert all(p.numel() == 0 and p.ds_tensor.numel() == -(-p.ds_numel // 2) for p in parameters.values())
    # Nothing was compiled: no lock to wait for.
    assert not (folder / "extensions").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A home with its Ray, a registry, and more rows."""
    from cluster import connect
    from cluster.registry import Registry

    folder = tmp_path_factory.mktemp("w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_HOME", str(folder / "home"))
        with connect.session():
            yield SimpleNamespace(
                registry=Registry(f"sqlite:///{folder / 'mlflow.db'}"),
                model=tiny.bert(folder / "model", dropout=0.1),
                data=tiny.text_data(folder / "data", rows=600, held_out=40),
            )


@slow
@pytest.mark.parametrize("name", ["fsdp", "zero2"])
def test_kill_9_of_a_ray_worker_changes_nothing(tmp_path: Path, world: Any, pair: Workers, name: str) -> None:
    """Against the unbroken run, made without Ray."""
    from test_train_run import workers

    from train.run import train as verb

    section = {"epochs": 3, "batch_size": 6, "learning_rate": 3e-3, "checkpoints_per_epoch": 4, "max_failures": 2}
    spec = tiny.spec(world.model, name=f"killed-{name}", workers=2, **section, **STRATEGIES[name])
    unbroken, _ = pair.all(train, spec, world.data.folder, world.data.labels, tmp_path)
    killed: list[int] = []

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        if done > 120 and not killed:  # by then a checkpoint has certainly been noted by the controller
            killed.append(workers()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    trained = verb(spec, world.data, registry=world.registry, progress=progress)
    assert killed
    run = world.registry.run(trained.run_id)
    assert int(run.tags["shoal.resumed_at"]) >= 25
    # Not to the last bit: under Ray, FSDP and ZeRO-2 came out a few of them apart from two plain processes.
    assert trained.metrics == pytest.approx(unbroken, abs=1e-4)
    assert json.loads(run.tags["shoal.parallel"]) == trained.parallel
    assert trained.parallel == shares(tmp_path) | {"why": "the file says so"}
    # The same again is found, with what its workers held.
    assert verb(spec, world.data, registry=world.registry).parallel == trained.parallel
