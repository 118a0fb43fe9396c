from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from cluster.cli.plan import command
from cluster.errors import InputError
from cluster.plan import Plan, here, machine, plan, sizes
from cluster.plan.rows import count
from cluster.plan.show import binary
from cluster.spec import DataRef, Spec, data_ref, load

GIB = 1 << 30
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 1,500 parameters in 16 bit, 100 training rows, 40 test rows, and the file that names them."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": numpy.zeros((30, 50), "float16")}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "train.csv").write_text("text,label\n" + "hello,a\n" * 100)
    (tmp_path / "test.csv").write_text("text,label\n" + "hello,a\n" * 40)
    (tmp_path / "a.yaml").write_text(
        "name: a\ntask: text-classification\nmodel: ./m\ndata: {train: train.csv, test: test.csv}\n"
    )
    return tmp_path


def of(folder: Path, *overrides: str, cores: int = 2, memory: int = 8 * GIB, disk: int = GIB, gpus: int = 0) -> Plan:
    spec = load(folder / "a.yaml", overrides)
    return plan(spec, cores=cores, memory=memory, free_disk=disk, gpus=gpus)


def refused(folder: Path, *overrides: str, cores: int = 2, gpus: int = 0) -> str:
    with pytest.raises(InputError) as caught:
        of(folder, *overrides, cores=cores, gpus=gpus)
    return str(caught.value)


def test_the_numbers_of_a_small_model(folder: Path) -> None:
    found = of(folder, "train.epochs=2.5", "train.batch_size=8", "evaluate.gate.f1=0.5")
    assert found.stages == ("data", "train", "evaluate", "gate", "register", "serve")
    assert (found.parameters, found.model_bytes) == (1500, 3000)
    assert found.rows == {"train": 90, "validation": 10, "test": 40}
    assert found.data_bytes == sum((folder / name).stat().st_size for name in ("train.csv", "test.csv"))
    # 90 rows are 12 steps of 8; two and a half epochs are 30.
    assert (found.steps_per_epoch, found.steps, found.rows_per_pass) == (12, 30, 8)
    # layers * s * b * h * (34 + 5 a s / h) * 2 with s = 64: the model takes no more than 64 tokens.
    kept = 2 * 64 * 8 * (34 * 64 + 5 * 4 * 64) * 2
    assert found.memory_worker == {
        "weights": 6000,
        "gradients": 6000,
        "optimizer": 12000,
        "activations": kept,
        "process": sizes.PROCESS,
    }
    assert found.memory_training == 24_000 + kept + sizes.PROCESS
    assert found.memory_replica == 6000 + sizes.PROCESS
    assert found.disk == (found.data_bytes or 0) + 3 * 18_000 + 2 * 6000
    assert found.fits is True
    assert found.warnings == ()


def test_workers_and_accumulation_share_a_batch(folder: Path) -> None:
    one, two = of(folder), of(folder, "train.workers=2", "train.gradient_accumulation_steps=2")
    assert (one.rows_per_pass, two.rows_per_pass) == (16, 4)
    assert one.steps == two.steps == 18
    assert one.memory_worker is not None
    assert two.memory_worker is not None
    assert two.memory_worker["activations"] * 4 == one.memory_worker["activations"]
    assert two.memory_worker["all-reduce"] == 6000
    assert two.memory_training == 2 * sum(two.memory_worker.values())


def test_16_bit_halves_the_activations(folder: Path) -> None:
    full, half = of(folder, "train.precision=float32"), of(folder, "train.precision=bfloat16")
    assert full.memory_worker is not None
    assert half.memory_worker is not None
    assert half.memory_worker["activations"] * 2 == full.memory_worker["activations"]
    assert half.memory_worker["16-bit copies"] == 3000
    assert of(folder).memory_worker == full.memory_worker
    assert of(folder, gpus=1).memory_worker == half.memory_worker


def test_auto_shares_a_model_where_a_whole_one_does_not_fit(folder: Path) -> None:
    """A worker takes about 600 MiB, nearly all of it the process itself."""
    roomy, tight = of(folder, "train.workers=2"), of(folder, "train.workers=2", memory=1 << 30)
    assert (roomy.parallel, tight.parallel) == ("ddp", "fsdp")
    assert "auto: a whole model takes 60" in (tight.parallel_why or "")
    assert "1/2 of the machine has 512.0 MiB, so each worker keeps a part" in (tight.parallel_why or "")
    assert "shared   fsdp (auto: a whole model takes" in "\n".join(tight.lines())
    alone = of(folder, memory=1 << 20)
    assert (alone.parallel, alone.parallel_why) == ("ddp", "auto: one worker has the whole model")
    asked = of(folder, "train.workers=2", "train.parallel=deepspeed")
    assert (asked.parallel, asked.parallel_why) == ("deepspeed", "the file says so")
    spec = load(folder / "a.yaml", ["train.workers=2"])
    on_gpus = [
        plan(spec, cores=2, memory=8 * GIB, free_disk=GIB, gpus=2, memory_gpu=size) for size in (GIB, GIB // 2, None)
    ]
    assert [found.parallel for found in on_gpus] == ["ddp", "fsdp", "ddp"]
    assert "the GPUs' memory is not known" in (on_gpus[2].parallel_why or "")


def test_training_takes_what_the_plan_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.plan import parallel_of

    monkeypatch.setenv("SHOAL_HOME", str(folder / "state"))
    for size, expected in ((8 * GIB, "ddp"), (GIB, "fsdp")):
        # What is free at the moment decides nothing: a run that goes on finds the strategy it began with.
        found = machine.Machine(cores=2, memory=1 << 20, free_disk=GIB, gpus=0, slots=8, memory_all=size)
        monkeypatch.setattr(machine, "here", lambda found=found: found)
        spec = load(folder / "a.yaml", ["train.workers=2"])
        assert parallel_of(spec, folder / "m").parallel == expected
        assert here(spec).parallel == expected
        assert parallel_of(spec, folder / "m").why == here(spec).parallel_why


@pytest.mark.parametrize(
    ("section", "weights", "gradients", "optimizer"),
    [
        ("train.parallel=ddp", 6000, 6000, 12000),
        ("train.parallel=fsdp", 3000, 3000, 6000),
        ("train.deepspeed.zero_stage=1", 6000, 6000, 6000),
        ("train.deepspeed.zero_stage=2", 6000, 3000, 6000),
        ("train.deepspeed.zero_stage=3", 3000, 3000, 6000),
    ],
)
def test_memory_by_strategy(folder: Path, section: str, weights: int, gradients: int, optimizer: int) -> None:
    """1,500 parameters of 4 bytes on 2 workers."""
    how = [] if "parallel" in section else ["train.parallel=deepspeed"]
    parts = of(folder, "train.workers=2", section, *how).memory_worker
    assert parts is not None
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (weights, gradients, optimizer)
    assert parts.get("float32 weights") == (3000 if how else None)


def test_offloaded_and_adapted(folder: Path) -> None:
    adapted = ("task=text-generation", "train.lora={rank: 4}")
    found = of(folder, *adapted, "train.workers=2", "train.parallel=deepspeed", "train.deepspeed.offload=cpu")
    # 4 * (in + out) of four squares of 64 and three of 64 x 128, in 2 layers.
    assert found.learning == 4 * 2 * (4 * 128 + 3 * 192)
    assert found.memory_worker is not None
    assert found.memory_worker["weights"] == 4 * (1500 + found.learning)
    assert found.memory_worker["optimizer on the host"] == 4 * found.learning
    assert f"about {found.learning:,} parameters learn" in "\n".join(found.lines())
    few = of(folder, "task=text-generation", "train.lora={rank: 4, target_modules: [query, value]}")
    assert few.learning == 4 * 2 * 2 * 128


def test_a_batch_that_does_not_divide_is_padded_and_said(folder: Path) -> None:
    found = of(folder, "train.workers=3", "train.batch_size=8", cores=4)
    assert found.warnings == (
        "train.batch_size: 8 does not divide by 3 workers: each step computes 1 row of padding, which count for "
        "nothing; 6 or 9 divide",
    )
    (said,) = of(folder, "train.workers=2", "train.gradient_accumulation_steps=4", "train.batch_size=10").warnings
    assert "10 does not divide by 2 workers x 4 passes: each step computes 6 rows of padding" in said
    assert said.endswith("8 or 16 divide")
    assert of(folder, "train.workers=2", "train.batch_size=8").warnings == ()


def test_deepspeed_that_is_not_asked_for(folder: Path) -> None:
    message = refused(folder, "train.deepspeed.zero_stage=3", "train.parallel=fsdp")
    assert "train.deepspeed: set, but train.parallel is fsdp; write parallel: deepspeed" in message
    message = refused(folder, "train.deepspeed.zero_stage=4", "train.parallel=deepspeed")
    assert message.endswith("train.deepspeed.zero_stage: 4: input should be 1, 2 or 3")


def test_what_does_not_fit_is_said(folder: Path) -> None:
    small = of(folder, memory=500 << 20)
    assert small.fits is False
    assert any("more memory is needed than is free: lower train.batch_size" in text for text in small.warnings)
    full = of(folder, disk=1000)
    assert full.fits is False
    assert any("more disk is needed than is free" in text for text in full.warnings)


def test_what_may_not_be_meant_is_said(folder: Path) -> None:
    found = " | ".join(of(folder, "train.batch_size=200", "data.test=", "evaluate.gate.f1=1").warnings)
    assert "train.batch_size: 200 is more than the 90 training rows" in found
    assert "data.test: not given: the gate is judged on the validation rows" in found
    found = " | ".join(of(folder, "train.workers=4", "train.batch_size=3", cores=2).warnings)
    assert "train.workers: 4 workers share 2 cores: no faster than 2 would be" in found
    assert "train.batch_size: 3 rows are fewer than train.workers x train.gradient_accumulation_steps" in found
    found = " | ".join(of(folder, "data.validation_split=0").warnings)
    assert "data.validation_split: 0: nothing is held out" in found


def test_a_validation_file_is_not_taken_from_training(folder: Path) -> None:
    (folder / "v.csv").write_text("text,label\n" + "x,a\n" * 7)
    assert of(folder, "data.validation=v.csv").rows == {"train": 100, "validation": 7, "test": 40}
    assert of(folder, "data.train='train.csv#50'").rows == {"train": 45, "validation": 5, "test": 40}
    assert of(folder, "data.train='train.csv#5000'").rows == {"train": 90, "validation": 10, "test": 40}


def test_a_model_without_weights_is_estimated_from_its_configuration(folder: Path) -> None:
    (folder / "m" / "model.safetensors").unlink()
    found = of(folder, "train.from_scratch=true")
    assert found.parameters == (1000 + 64) * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert "the model has no weights: parameters are estimated from its configuration" in found.notes
    assert "model.safetensors" in refused(folder)


def test_the_estimate_is_close_to_the_real_thing(tmp_path: Path) -> None:
    """Written out, the small ViT of the samples has 103,178 parameters."""
    from cluster.samples.models import VIT

    shape = sizes.shape_of(VIT)
    assert shape is not None
    assert shape.tokens == 17
    assert sizes.parameters(shape) == pytest.approx(103_178, rel=0.05)


def test_other_names_in_a_configuration() -> None:
    distilbert = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512}
    assert sizes.shape_of(distilbert) == sizes.Shape(768, 6, 12, 3072, 0, 512)
    assert sizes.shape_of({"n_embd": 8, "n_layer": 2, "n_head": 2}) == sizes.Shape(8, 2, 2, 32, 0, None)
    assert sizes.shape_of({"hidden_sizes": [1, 2], "depths": [2, 2]}) is None
    assert sizes.shape_of({"hidden_size": "x", "num_hidden_layers": -1, "num_attention_heads": 2}) is None


def test_models_that_are_elsewhere(folder: Path) -> None:
    found = of(folder, "model=org/name")
    assert (found.parameters, found.memory_training, found.disk, found.fits) == (None, None, None, None)
    assert "the model is on the Hub: its size is known once it is downloaded" in found.notes
    assert found.steps == 18
    found = of(folder, "model=models:/a@champion", "data.train=", "data.test=")
    assert found.stages == ("serve",)
    assert found.rows == {}
    assert "the model is in the registry" in found.notes[0]


def test_a_model_that_is_only_served(folder: Path) -> None:
    found = of(folder, "data.train=", "data.test=", "serve.min_replicas=2", "serve.max_replicas=3", memory=GIB)
    assert found.stages == ("serve",)
    assert (found.memory_replica, found.replicas) == (3000 + sizes.PROCESS, (2, 3))
    assert found.fits is False
    assert (found.steps, found.disk, found.memory_training) == (None, None, None)


def test_an_estimator(folder: Path) -> None:
    found = of(folder, "task=tabular-classification", "model=sklearn.svm.SVC", "train.workers=3")
    assert (found.steps, found.memory_worker, found.workers) == (None, None, 1)
    assert found.disk == found.data_bytes
    assert "train.workers: 3: a scikit-learn estimator is fitted by one worker" in found.warnings
    assert found.rows["train"] == 90


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.gate.f2=0.5"], "evaluate.gate: 'f2' is no metric of text-classification; did you mean f1?"),
        (["evaluate.metrics=[zzz]"], "evaluate.metrics: 'zzz' is no metric of text-classification; it has accuracy,"),
        (["task=text-to-video"], "task: text-to-video cannot be trained yet; these can: "),
        (["task=text-to-video", "data="], "task: text-to-video cannot be served yet; these can: "),
        (["task=nothing"], "task: 'nothing' is not a task"),
        (["serve.num_gpus=1"], "serve.num_gpus: 1 for each of 1 replicas, this machine has none; lower it"),
        (
            ["train.workers=9"],
            "train.workers: 9 workers of one core each, and Ray hands out 8; lower it, or raise ray.",
        ),
        (["serve.num_cpus=9"], "serve.num_cpus: 9 for each of 1 replicas, and Ray hands out 8"),
        (["serve.min_replicas=9", "serve.max_replicas=9"], "serve.num_cpus: 1 for each of 9 replicas, and Ray hands"),
        (["model=sklearn.svm.SVC"], "model: 'sklearn.svm.SVC' is a scikit-learn estimator, for tabular tasks"),
        (["task=tabular-classification"], "model: './m': tabular-classification learns with an estimator such as"),
        (
            ["task=tabular-classification", "model=sklearn.svm.SVC", "train.parallel=fsdp"],
            "train.parallel: fsdp: an estimator is fitted whole by one worker; leave it out",
        ),
        (["task=tabular-classification", "model=sklearn.svm.SVC", "data="], "has learned nothing yet; give data.train"),
        (["model=./none"], "no such folder; name a model folder"),
        (["data.train=none.csv"], "data.train: 'none.csv': no such file or folder"),
        (["data.test=none.csv"], "data.test: 'none.csv': no such file or folder"),
        (["data.train=empty.csv"], "data.train: 'empty.csv' has no rows"),
        (["data.train=none"], "data.train: 'none': no such file or folder"),
        (["data.train=bad.parquet"], "no Parquet file that can be read"),
    ],
)
def test_what_can_never_work_is_refused(folder: Path, overrides: list[str], message: str) -> None:
    (folder / "empty.csv").write_text("text,label\n")
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert message in refused(folder, *overrides)


def test_gpus_that_are_there(folder: Path) -> None:
    assert of(folder, "serve.num_gpus=0.5", "serve.min_replicas=2", "serve.max_replicas=2", gpus=1).gate == {}
    assert "serve.num_gpus: 1 for each of 3 replicas, there are 2" in refused(
        folder, "serve.num_gpus=1", "serve.min_replicas=3", "serve.max_replicas=3", gpus=2
    )


def counted(path: Path, *, rows: int | None = None) -> tuple[int | None, bool]:
    mark = f"#{rows}" if rows else ""
    found = count(data_ref(f"{path}{mark}", base=path.parent, key="data.train"), key="data.train")
    return found.rows, found.exact


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "t\n1\n2\n", 2),
        ("a.csv", "t\n1\n2", 2),
        ("a.csv", 't,l\n"one\ntwo",a\n"say ""hi""\n",b\n', 2),
        ("a.tsv", 't\tl\n"x\ny"\ta\n', 1),
        ("a.jsonl", '{"a": 1}\n{"a": "\\""}\n{"a": 3}', 3),
        ("a.json", '[{"a": 1},\n{"a": 2}]', None),
        ("a.txt", "one\ntwo\n", 2),
    ],
)
def test_rows_are_counted(tmp_path: Path, name: str, content: str, rows: int | None) -> None:
    (tmp_path / name).write_text(content)
    assert counted(tmp_path / name) == (rows, rows is not None)


def test_quotes_across_blocks_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.plan import rows

    (tmp_path / "a.csv").write_text("t\n" + '"a\nb ""c""\n"\n' * 200)
    for block in (1, 2, 3, 7, 64):
        monkeypatch.setattr(rows, "_BLOCK", block)
        assert counted(tmp_path / "a.csv") == (200, True)


def test_large_files_are_projected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.plan import rows

    (tmp_path / "a.csv").write_text("text\n" + "word\n" * 10_000)
    monkeypatch.setattr(rows, "_BLOCK", 1000)
    monkeypatch.setattr(rows, "COUNT_BYTES", 5000)
    assert counted(tmp_path / "a.csv") == (10_000, False)
    assert counted(tmp_path / "a.csv", rows=20) == (20, True)


def test_parquet_and_pictures_are_counted(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2, 3]}), tmp_path / "a.parquet")
    assert counted(tmp_path / "a.parquet") == (3, True)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", ".cache/1.png", "dog/.hidden", "README.md"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("x")
    assert counted(tmp_path / "p") == (3, True)
    assert counted(tmp_path / "p", rows=2) == (2, True)
    hub = DataRef("hf://a/b#9", "hub", name="a/b", rows=9)
    assert count(hub, key="data.train").rows == 9
    assert count(hub, key="data.train").exact is False


def test_the_verb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(folder / "state"))
    found = machine.Machine(cores=2, memory=8 * GIB, free_disk=GIB, gpus=0, slots=8)
    monkeypatch.setattr(machine, "here", lambda: found)
    told = CliRunner().invoke(command, [str(folder / "a.yaml"), "train.epochs=1", "--json"])
    value = json.loads(told.stdout.splitlines()[-1])
    assert value == json.loads(json.dumps(of(folder, "train.epochs=1").to_dict()))
    text = CliRunner().invoke(command, [str(folder / "a.yaml"), "evaluate.gate.f1=0.5"]).stdout
    assert "model    ./m (local): 1,500 parameters, 2.9 KiB on disk" in text
    assert "data     train 90 rows, validation 10 rows, test 40 rows; 1.1 KiB" in text
    assert "steps    18 in all, 6 an epoch; 1 worker, 16 rows a forward pass each" in text
    assert "must reach f1 0.5" in text
    assert "fits     yes" in text


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    found = machine.here()
    assert found.cores >= 1
    assert found.slots == 4 * found.cores
    assert found.memory > 100 << 20
    assert found.free_disk > 0
    (tmp_path / "cluster.yaml").write_text("ray: {num_cpus: 5}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine.here()
    assert (found.slots, found.gpus) == (5, 0)


def test_sizes_as_people_read_them() -> None:
    assert [binary(n) for n in (0, 1023, 1024, 1536, 5 * GIB)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 GiB",
    ]


def test_a_plan_needs_no_more_than_the_file(folder: Path) -> None:
    """Nothing is written by planning."""
    before = sorted(folder.rglob("*"))
    assert isinstance(load(folder / "a.yaml"), Spec)
    of(folder)
    assert sorted(folder.rglob("*")) == before
