"""A sweep's study on disk, and what is shown of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import train_tiny as tiny

from cluster.registry import Registry
from cluster.spec import Spec
from train.run import Trained
from tune import report
from tune.run import Swept
from tune.study import Study

LEARNING_RATE, DECAY = "train.learning_rate", "train.weight_decay"
SPACE = {LEARNING_RATE: {"loguniform": [1e-6, 1e-2]}, DECAY: {"uniform": [0, 0.5]}}


def spec(trials: int, space: dict[str, Any] | None = None, **tune: Any) -> Spec:
    base = tiny.spec("./<b>model", name="swept", epochs=2).model_dump()
    return Spec.model_validate(base | {"tune": {"trials": trials, "space": space or SPACE, **tune}})


def test_a_study_goes_on_where_it_was_left(tmp_path: Path) -> None:
    wanted = spec(4)
    study = Study(tmp_path / "study.db", wanted)
    assert study.left() == 4
    first, second = study.next(), study.next()
    assert first
    assert second
    assert first.values == {LEARNING_RATE: 5e-5, DECAY: 0.01}, "the file's own values come first"
    study.note(first.number, {"run": "r0", "seconds": 3.0})
    study.end(first.number, "finished", 0.5)
    study.mark(second.number, 1, 0.9)
    study.run_id = "parent"

    again = Study(tmp_path / "study.db", wanted)
    assert (again.left(), again.run_id) == (3, "parent")
    broken_off = again.next()
    assert broken_off
    assert (broken_off.number, broken_off.values, broken_off.marks) == (second.number, second.values, {1: 0.9})
    third, fourth = again.next(), again.next()
    assert third
    assert fourth
    assert again.next() is None, "four trials and no more"
    assert len({json.dumps(row.values) for row in again.rows()}) == 4
    again.mark(third.number, 1, 0.7)
    again.end(third.number, "pruned")
    again.note(fourth.number, {"error": "the training loss is nan at step 3"})
    again.end(fourth.number, "failed")
    again.end(second.number, "finished", 0.4)
    assert again.left() == 0
    assert [row.status for row in again.rows()] == ["finished", "finished", "pruned", "failed"]
    best = again.best()
    assert best
    assert best.number == second.number
    assert [row.value for row in again.rows()] == [0.5, 0.4, 0.7, None]


def test_accuracy_is_better_when_it_is_more(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", spec(3, metric="accuracy"))
    for value in (0.7, 0.9, 0.9):
        row = study.next()
        assert row
        study.end(row.number, "finished", value)
    best = study.best()
    assert best
    assert best.number == 1
    assert [row.number for row in report.ranked(study.rows(), maximize=True)] == [1, 2, 0]


def test_a_space_of_choices_ends_when_all_were_tried(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", spec(9, {"train.batch_size": {"choice": [8, 16, 32]}}))
    drawn = []
    while (row := study.next()) is not None:
        study.end(row.number, "finished", float(row.number))
        drawn.append(row.values["train.batch_size"])
    assert sorted(drawn) == [8, 16, 32]
    assert (study.exhausted, study.left(), len(study.rows())) == (True, 0, 3)


def test_random_search_is_the_same_by_its_seed(tmp_path: Path) -> None:
    def draws(name: str, seed: int) -> list[Any]:
        study = Study(tmp_path / name, spec(5, search="random", seed=seed))
        return [study.next() for _ in range(5)]

    assert [row.values for row in draws("a", 1)] == [row.values for row in draws("b", 1)]
    assert [row.values for row in draws("c", 2)][1:] != [row.values for row in draws("d", 1)][1:]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('r')}/mlflow.db")


def swept(folder: Path, registry: Registry, finished: int) -> Swept:
    """A sweep in which only the learning rate matters; one trial failed with a hostile message, one ended early."""
    import math

    wanted = spec(finished + 2, search="random")
    study = Study(folder / "study.db", wanted)
    for _ in range(finished):
        row = study.next()
        assert row
        rate = row.values[LEARNING_RATE]
        assert isinstance(rate, float)
        study.end(row.number, "finished", 1 + abs(math.log10(rate) + 3))
    early, failed = study.next(), study.next()
    assert early
    assert failed
    run = registry.start_run("swept", kind="train", params={"train": {"epochs": 2}}, tags={"shoal.total_steps": "40"})
    for step, value in ((20, 3.25), (40, 3.5)):
        registry.log(run, {"validation/loss": value}, step=step)
    study.note(early.number, {"run": run})
    study.mark(early.number, 1, 3.25)
    study.end(early.number, "pruned")
    study.note(failed.number, {"error": "<script>alert(1)</script> nan"})
    study.end(failed.number, "failed")
    best = study.best()
    assert best
    trained = Trained("r1", folder, {"validation/loss": best.value or 0}, reused=False, seconds=1.0)
    return Swept("parent", folder, study, study.rows(), best, wanted, trained, reused=False, seconds=9.0)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_stands_alone_and_holds_every_trial(tmp_path: Path, registry: Registry) -> None:
    done = swept(tmp_path, registry, finished=12)
    file = report.write(done, registry, done.spec, scores={"f1": 0.875}, version="models:/swept/1")
    text = file.read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("tr") == 1 + 14
    assert page.tags.count("svg") == 3, "curves, values, importance"
    assert "script" not in page.tags
    assert all(asked.startswith("#") for asked in page.asked), "only parts of its own figures are referred to"
    assert not re.search(r"url\((?!#)", text)
    words = " ".join(page.words)
    assert "<script>alert(1)</script> nan" in words
    assert "./<b>model" in words
    assert "f1 0.8750" in words
    assert f"{LEARNING_RATE}={done.best.values[LEARNING_RATE]}" in words

    about = json.loads((file.parent / "trials.json").read_text())
    assert about["best"] == done.best.number
    assert about["trials"][12]["curve"] == {"20": 3.25, "40": 3.5}
    assert about["importance"][LEARNING_RATE] > 0.75 > 0.25 > about["importance"][DECAY]
    assert next(iter(about["importance"])) == LEARNING_RATE


def test_few_trials_are_given_no_importance(tmp_path: Path, registry: Registry) -> None:
    done = swept(tmp_path, registry, finished=3)
    file = report.write(done, registry, done.spec, scores={}, version="")
    assert "3 trials ran to their end; importance needs 8" in file.read_text()
    assert json.loads((file.parent / "trials.json").read_text())["importance"] is None


def test_the_table_is_sorted_and_the_line_to_keep_is_exact(tmp_path: Path, registry: Registry) -> None:
    done = swept(tmp_path, registry, finished=3)
    lines = report.table(done).splitlines()
    assert lines[0].split() == ["trial", "status", "learning_rate", "weight_decay", "loss", "seconds"]
    assert lines[1].split()[0] == str(done.best.number)
    assert "ended early" in lines[-2]
    assert "failed" in lines[-1]
    assert "<script>alert(1)</script> nan" in lines[-1]
    kept = report.keep("my file.yaml", done)
    assert kept.startswith("shoal up 'my file.yaml' train.learning_rate=")
    assert str(done.best.values[LEARNING_RATE]) in kept
