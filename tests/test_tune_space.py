"""What a sweep's section says: refused with one message each, or turned into distributions and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import train_tiny as tiny

from cluster.errors import InputError
from cluster.spec import Spec, parse
from tune.space import distributions, own, short, told, tried

FILE = "name: a\ntask: text-classification\nmodel: x/y\n"


def sweep(line: str) -> Spec:
    return parse(f"{FILE}tune:\n  space:\n    {line}\n", where="f.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.learning_rat: {uniform: [0, 1]}", r"learning_rat: no such key; did you mean train\.learning_rate\?"),
        ("train.lora.rnk: {int: [2, 16]}", r"rnk: no such key; did you mean train\.lora\.rank\?"),
        ("train.workers: {int: [1, 2]}", r"workers: cannot be swept: it does not change the model"),
        ("train.max_failures: {int: [1, 2]}", r"max_failures: cannot be swept"),
        ("train.checkpoints_per_epoch: {int: [1, 2]}", r"compared at their validations"),
        ("train.deepspeed.zero_stage: {int: [1, 2]}", r"cannot be swept"),
        ("learning_rate: {uniform: [0.1, 1]}", r"only keys of train can be swept; write train\.learning_rate"),
        ("serve.min_replicas: {int: [1, 2]}", r"serve\.min_replicas: only keys of train can be swept"),
        ("train.lora: {choice: [1]}", r"a section; sweep its keys, train\.lora\.rank"),
        ("train.parameters: {choice: [1]}", r"a mapping; sweep what is in it"),
        ("train.epochs.x: {int: [1, 2]}", r"train\.epochs has no keys of its own"),
        ("train.learning_rate: {loguniform: [1e-3, 1e-6]}", r"the least comes first; write \[1e-06, 0\.001\]"),
        ("train.learning_rate: {loguniform: [0, 1]}", r"begins above 0; write a small number, or uniform"),
        (
            "train.learning_rate: {loguniform: [1e-3, 100]}",
            r"loguniform: 100: input should be less than or equal to 10",
        ),
        ("train.learning_rate: {uniform: [0.1]}", r"write the least and the greatest number"),
        ("train.learning_rate: {uniform: [true, false]}", r"write the least and the greatest number"),
        ("train.learning_rate: {uniform: [0.1, .inf]}", r"finite numbers only"),
        ("train.batch_size: {int: [1.5, 3]}", r"whole numbers only; write uniform"),
        ("train.batch_size: {uniform: [8, 32]}", r"train\.batch_size takes whole numbers; write int"),
        ("train.batch_size: {choice: [8, 0]}", r"choice: 0: input should be greater than or equal to 1"),
        ("train.batch_size: {choice: [8, 8]}", r"a value stands twice"),
        ("train.batch_size: {choice: []}", r"choice of nothing"),
        ("train.batch_size: {choice: [[8]]}", r"numbers, words, true, false and null only"),
        ("train.batch_size: [8, 16]", r"\[8, 16\]: write how to try it, e\.g\. \{choice: \[8, 16\]\}"),
        ("train.schedule: {choice: [linear, cosin]}", r"choice: 'cosin': input should be 'linear', 'cosine' or"),
        ("train.batch_size: {int: [8, 16], choice: [8]}", r"int, choice: write one of uniform"),
        ("train.learning_rate: {logunform: [1, 2]}", r"'logunform': input should be 'uniform', 'loguniform'"),
    ],
)
def test_each_fault_is_one_message_with_its_key(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        sweep(line)
    assert len(error.value.message.splitlines()) == 1
    assert error.value.message.startswith("f.yaml:")
    assert "tune.space." in error.value.message


def test_a_sweep_without_a_space_is_refused_and_no_sweep_is_none() -> None:
    with pytest.raises(InputError, match=r"f\.yaml:4: tune\.space: empty; write what to try"):
        parse(f"{FILE}tune: {{trials: 3}}", where="f.yaml")
    assert parse(f"{FILE}tune:", where="f.yaml").tune.space == {}


def test_a_key_with_dots_can_be_set_on_the_command_line() -> None:
    spec = parse(FILE, ["tune.space.train.learning_rate={loguniform: [1e-6, 1e-3]}", "tune.trials=3"])
    assert spec.tune.space == {"train.learning_rate": {"loguniform": [1e-6, 1e-3]}}


def test_a_space_becomes_distributions_with_both_ends() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = sweep(
        "{train.learning_rate: {loguniform: [1e-6, 1e-3]}, train.weight_decay: {uniform: [0, 1]}, "
        "train.batch_size: {int: [8, 32]}, train.lora.rank: {logint: [2, 64]}, "
        "train.schedule: {choice: [linear, cosine]}}"
    ).tune.space
    assert distributions(space) == {
        "train.learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
        "train.weight_decay": FloatDistribution(0.0, 1.0),
        "train.batch_size": IntDistribution(8, 32),
        "train.lora.rank": IntDistribution(2, 64, log=True),
        "train.schedule": CategoricalDistribution(["linear", "cosine"]),
    }


def test_a_trial_is_the_file_with_its_values_in_it() -> None:
    spec = sweep("train.lora.rank: {int: [2, 16]}")
    assert spec.train.lora is None
    trial = tried(spec, {"train.lora.rank": 4, "train.learning_rate": 1e-3})
    assert (trial.train.lora and trial.train.lora.rank, trial.train.lora and trial.train.lora.alpha) == (4, 16)
    assert trial.train.learning_rate == 1e-3
    assert trial.train.batch_size == spec.train.batch_size
    assert (spec.train.lora, spec.train.learning_rate) == (None, 5e-5), "the file itself stays as it is"
    forest = tried(sweep("train.parameters.n_estimators: {int: [10, 50]}"), {"train.parameters.n_estimators": 20})
    assert forest.train.parameters == {"n_estimators": 20}


def test_what_is_told_reads_back_as_the_same_values() -> None:
    values = {"train.learning_rate": 0.00031234567890123, "train.batch_size": 8, "train.schedule": "cosine"}
    again = parse(FILE, told(values).split(" ")).train
    assert [getattr(again, key.split(".")[1]) for key in values] == list(values.values())
    assert short(values) == "learning_rate 0.000312, batch_size 8, schedule cosine"


def test_the_files_own_values_are_in_the_space_or_not() -> None:
    assert own(sweep("train.learning_rate: {loguniform: [1e-6, 1e-3]}")) == {"train.learning_rate": 5e-5}
    assert own(sweep("train.learning_rate: {loguniform: [1e-4, 1e-3]}")) is None
    assert own(sweep("train.batch_size: {choice: [8, 16]}")) == {"train.batch_size": 16}
    assert own(sweep("train.lora.rank: {int: [2, 16]}")) is None
    assert own(sweep("train.from_scratch: {choice: [true, false]}")) == {"train.from_scratch": False}


def test_the_tune_section_decides_no_training_run(tmp_path: Path) -> None:
    from train.run import key

    model, data = tiny.bert(tmp_path / "model"), tiny.text_data(tmp_path / "data")
    plain = tiny.spec(model)
    space = {"train.learning_rate": {"loguniform": [1e-6, 1e-3]}}
    swept = Spec.model_validate(plain.model_dump() | {"tune": {"space": space, "trials": 3}})
    assert key(plain, data) == key(swept, data)
    assert key(plain, data) == key(tried(swept, {"train.epochs": 3}), data), "a value written and the default"
    from tune.run import key as sweep_key

    more = Spec.model_validate(plain.model_dump() | {"tune": {"space": space, "trials": 4}})
    wider = Spec.model_validate(plain.model_dump() | {"tune": {"space": space, "trials": 3, "max_concurrent": 2}})
    assert sweep_key(swept, data) != sweep_key(more, data)
    assert sweep_key(swept, data) == sweep_key(wider, data), "how many run at a time changes nothing"


def test_as_many_trials_at_once_as_there_are_cores_for() -> None:
    from tune.tuner import at_once

    def spec(workers: int, most: int | None = None) -> Spec:
        return parse(FILE, [f"train.workers={workers}", f"tune.max_concurrent={json.dumps(most)}",
                            "tune.space={train.batch_size: {choice: [8, 16]}}"])  # fmt: skip

    assert at_once(spec(1), slots=8, gpus=0, cores=2) == 2
    assert at_once(spec(2), slots=8, gpus=0, cores=2) == 1
    assert at_once(spec(4), slots=8, gpus=0, cores=2) == 1, "more workers than cores still run, one trial at a time"
    assert at_once(spec(2, 3), slots=8, gpus=0, cores=2) == 3
    assert at_once(spec(2, 30), slots=8, gpus=0, cores=2) == 4, "never more than Ray hands out cores for"
    assert at_once(spec(2), slots=8, gpus=5, cores=2) == 2
    with pytest.raises(InputError, match=r"train\.workers: 9 for each trial, and the cluster has 8 cores; write 8"):
        at_once(spec(9), slots=8, gpus=0, cores=2)
