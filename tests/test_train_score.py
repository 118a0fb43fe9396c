"""Evaluation: metrics against hand-counted ones, the gate, the files, the same answers in and out of Ray."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import train_tiny
from PIL import Image

from cluster import connect
from cluster.errors import InputError, RunFailed
from cluster.spec import Spec, parse
from train import confusion, score
from train.data import prepare
from train.metrics import METRICS, make
from train.tasks.tabular import TabularClassification


class Recorder:
    """The two calls of a registry that an evaluation makes, kept."""

    def __init__(self):
        self.metrics, self.files = {}, {}

    def log(self, run_id, metrics, step=0):
        self.metrics.update({(run_id, name): value for name, value in metrics.items()})

    def log_artifacts(self, run_id, folder, path):
        self.files.update({f"{path}/{file.name}": file.read_bytes() for file in Path(folder).iterdir()})


def judge(spec, prepared, folder, **options) -> tuple[score.Evaluation, Recorder]:
    recorder = Recorder()
    found = score.evaluate(spec, prepared, folder, registry=cast(Any, recorder), run_id="r1", **options)
    return found, recorder


def spec_of(evaluate="{}", task="text-classification"):
    return parse(f"name: tiny\ntask: {task}\nmodel: ./base\nevaluate: {evaluate}")


def bert_that_says(folder: Path, label: int, names=("bad", "good")) -> Path:
    """A BERT whose answer is always the same: its head has no weights but a bias."""
    import torch
    from transformers import AutoModelForSequenceClassification

    train_tiny.bert(folder, labels=len(names))
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.eye(len(names))[label] * math.log(3))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    return folder


def mails(folder: Path, labels: list[int], names=("bad", "good")):
    table = pa.table({"text": [f"good{i % 20}" for i in range(len(labels))], "label": pa.array(labels, pa.int64())})
    return train_tiny.write(folder, {"train": table, "validation": table.slice(0, 2), "test": table}, list(names))


def test_metrics_are_those_counted_by_hand(tmp_path):
    # 0: 2 of 3 right and 1 false alarm; 1: 1 of 2 right, 2 false alarms; 2: never said; 3: stands nowhere.
    references, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1]
    pairs = {"references": references, "predictions": predictions}
    accuracy = make("accuracy", tmp_path).compute(**pairs)
    assert accuracy == {"accuracy": 3 / 6}
    f1 = [2 * (2 / 3) * (2 / 3) / (4 / 3), 2 * (1 / 3) * (1 / 2) / (5 / 6), 0.0]
    assert make("precision", tmp_path).compute(**pairs)["precision"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert make("recall", tmp_path).compute(**pairs)["recall"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert make("f1", tmp_path).compute(**pairs)["f1"] == pytest.approx(sum(f1) / 3)
    assert make("f1", tmp_path).compute(**pairs, average="micro")["f1"] == pytest.approx(0.5)
    per_class = make("per_class", tmp_path).compute(**pairs, num_classes=4)
    assert per_class["support"] == [3, 2, 1, 0]
    assert per_class["f1"] == pytest.approx([*f1, 0.0])
    assert make("confusion", tmp_path).compute(**pairs, num_classes=4)["confusion"] == [
        [2, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_every_metric_is_evaluates_and_leaves_no_files(tmp_path):
    import evaluate

    for name in METRICS:
        metric = make(name, tmp_path)
        assert isinstance(metric, evaluate.Metric)
        options = {"num_classes": 2} if name in ("per_class", "confusion") else {}
        metric.add_batch(references=[0, 1], predictions=[0, 1])
        metric.add(references=1, predictions=0)
        result = metric.compute(**options)
        assert result is not None
        assert name in result or set(result) == {"precision", "recall", "f1", "support"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_score_alone_needs_neither_torch_nor_transformers(tmp_path):
    """They are there for whoever asks afterwards; and where they were there first, nothing is kept from anybody."""
    program = """
import sys
from pathlib import Path
first = sys.argv[2:]
for name in first:
    __import__(name)
from train.metrics import make
print(make("accuracy", Path(sys.argv[1])).compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1])["accuracy"])
print(sorted({"torch", "transformers"} & set(sys.modules)) == sorted(first))
from transformers import pipeline
print(pipeline.__name__)
"""
    for first in ([], ["torch", "transformers"]):
        command = [sys.executable, "-c", program, str(tmp_path), *first]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["0.75", "True", "pipeline"]


@pytest.mark.parametrize(
    ("evaluate", "parts"),
    [
        ("{metrics: [acuracy]}", ["evaluate.metrics: 'acuracy'", "did you mean accuracy?"]),
        ("{metrics: [rouge]}", ["'rouge' is no metric of text-classification", "accuracy, precision, recall, f1"]),
        ("{metrics: [confusion]}", ["'confusion' is no metric"]),
        ("{gate: {F1: 0.5}}", ["evaluate.gate.F1", "did you mean f1?"]),
        ("{metrics: [accuracy], gate: {f1: 0.5}}", ["evaluate.gate.f1: not computed", "add f1 to evaluate.metrics"]),
    ],
)
def test_unknown_metrics_are_refused_before_anything_is_spent(evaluate, parts):
    with pytest.raises(InputError) as caught:
        score.check(spec_of(evaluate))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    score.check(spec_of("{metrics: [f1, accuracy], gate: {f1: 0.5}}"))


def test_a_model_that_always_says_one_class_gets_the_majority(tmp_path):
    folder = bert_that_says(tmp_path / "model", 0)
    prepared = mails(tmp_path / "data", [0] * 7 + [1] * 3)
    told = []
    found, recorder = judge(
        spec_of("{batch_size: 4, gate: {accuracy: 0.7, f1: 0.5}}"),
        prepared,
        folder,
        progress=lambda stage, done, total, note="": told.append((stage, done, total)),
    )
    assert found.metrics == {
        "accuracy": 0.7,
        "precision": pytest.approx(0.35),
        "recall": pytest.approx(0.5),
        "f1": pytest.approx(0.7 / 1.7),
        "loss": pytest.approx(-0.7 * math.log(3 / 4) - 0.3 * math.log(1 / 4)),
    }
    assert found.confusion == [[7, 0], [3, 0]]
    assert [row["support"] for row in found.per_class] == [7, 3]
    assert found.majority == 0.7
    assert (found.split, found.rows) == ("test", 10)
    assert found.gate["accuracy"] == (0.7, 0.7, True)
    assert not found.passed
    assert found.gate_text() == "accuracy 0.7 reaches 0.7; f1 0.411765 is below 0.5"
    assert recorder.metrics["r1", "test/f1"] == found.metrics["f1"]
    assert set(recorder.metrics) == {("r1", f"test/{name}") for name in found.metrics}
    assert told[0] == ("evaluate", 0, 10)
    assert told[-1] == ("evaluate", 10, 10)

    assert set(recorder.files) == set(found.files)
    content = json.loads(recorder.files["evaluation/evaluation.json"])
    assert content["metrics"] == found.metrics
    assert content["gate"]["f1"] == {"value": found.metrics["f1"], "least": 0.5, "reached": False}
    assert content["data"] == prepared.digest
    assert (content["passed"], content["confusion"]) == (False, [[7, 0], [3, 0]])
    table = recorder.files["evaluation/table.txt"].decode()
    assert "bad       0.7000  1.0000  0.8235        7" in table
    assert "always saying 'bad' would reach an accuracy of 0.7000" in table
    assert recorder.files["evaluation/confusion.png"].startswith(b"\x89PNG")


def test_only_listed_metrics_are_computed_and_no_gate_passes(tmp_path):
    found, _ = judge(spec_of("{metrics: [f1]}"), mails(tmp_path / "d", [0, 1]), bert_that_says(tmp_path / "m", 1))
    assert list(found.metrics) == ["f1", "loss"]
    assert found.passed
    assert found.gate_text() == "no gate"


def test_not_a_number_passes_no_gate():
    found = score.Evaluation(
        split="test",
        rows=1,
        labels=["a", "b"],
        metrics={"f1": math.nan},
        per_class=[],
        confusion=[],
        majority=1.0,
        gate={"f1": (math.nan, 0.0, math.nan >= 0.0)},
        seconds=0.0,
    )
    assert not found.passed
    assert found.content()["metrics"] == {"f1": None}


def test_labels_are_matched_by_name_not_by_place(tmp_path):
    folder = bert_that_says(tmp_path / "m", 0, names=("good", "bad"))
    found, _ = judge(spec_of(), mails(tmp_path / "d", [0, 1, 1, 1]), folder)
    assert found.confusion == [[0, 1], [0, 3]]
    assert found.metrics["loss"] == pytest.approx(-0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4))
    with pytest.raises(InputError, match=r"tells 'good', 'bad' apart, the data has 'ham', 'spam'"):
        judge(spec_of(), mails(tmp_path / "e", [0, 1], names=("ham", "spam")), folder)


def test_a_diverged_model_is_no_majority_guesser(tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = bert_that_says(tmp_path / "m", 0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    model.save_pretrained(folder)
    with pytest.raises(RunFailed, match="answers no numbers"):
        judge(spec_of(), mails(tmp_path / "d", [0, 0, 1]), folder)


def test_batches_do_not_change_the_answers(tmp_path):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = train_tiny.bert(tmp_path / "m")
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(folder)
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    BertForSequenceClassification(config).save_pretrained(folder)
    prepared = train_tiny.text_data(tmp_path / "d")
    whole, _ = judge(spec_of("{batch_size: 64}"), prepared, folder)
    parts, _ = judge(spec_of("{batch_size: 3}"), prepared, folder)
    again, _ = judge(spec_of("{batch_size: 3}"), prepared, folder)
    assert whole.split == "validation"  # no test rows there
    assert whole.confusion == parts.confusion
    assert whole.metrics["loss"] == pytest.approx(parts.metrics["loss"], rel=1e-5)
    assert parts.metrics == again.metrics


def test_tables(tmp_path):
    prepared = train_tiny.iris_data(tmp_path / "d")
    spec = Spec(name="iris", task="tabular-classification", model="sklearn.tree.DecisionTreeClassifier")
    method = TabularClassification()
    method.fit(spec, prepared.folder, prepared.labels, tmp_path / "m")
    found, _ = judge(spec, prepared, tmp_path / "m")
    assert found.rows == 50
    assert 0.85 < found.metrics["accuracy"] == sum(found.confusion[i][i] for i in range(3)) / 50
    assert "loss" not in found.metrics
    assert [row["label"] for row in found.per_class] == ["setosa", "versicolor", "virginica"]


def test_prepared_data_goes_straight_in(tmp_path):
    rows = "\n".join(json.dumps({"text": f"good{i}", "label": ["bad", "good"][i % 2]}) for i in range(20))
    (tmp_path / "a.jsonl").write_text(rows)
    spec = parse("name: a\ntask: text-classification\nmodel: ./b\ndata: {train: a.jsonl, test: 'a.jsonl#4'}").at(
        tmp_path
    )
    found, _ = judge(spec, prepare(spec, into=tmp_path / "out"), bert_that_says(tmp_path / "m", 1))
    assert found.confusion == [[0, 2], [0, 2]]


@pytest.mark.parametrize("size", [2, 12, 31, 100])
def test_picture_is_readable_for_any_number_of_classes(tmp_path, size):
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(20, 60, size)) + (rng.random((size, size)) < 0.05) * 3
    labels = [f"a label $n_{i}$ of some length, \u4e2d\u6587 {i}" for i in range(size)]
    confusion.draw(counts.tolist(), labels, tmp_path / "c.png", title="x")
    with Image.open(tmp_path / "c.png") as image:
        width, height = image.size
    assert 400 < height <= width < 3500
    assert (height - 300) / size > 16 if size > 2 else True  # pixels a class: a line of small print


def test_code_is_the_digest_of_what_judges(tmp_path, monkeypatch):
    before = score.code()
    assert before == score.code()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "classification.py").write_text("changed")
    monkeypatch.setattr(score, "__file__", str(tmp_path / "score.py"))
    assert score.code() != before


@pytest.mark.slow
def test_in_ray_the_same_and_errors_come_out_as_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    folder = bert_that_says(tmp_path / "m", 0)
    prepared = mails(tmp_path / "d", [0] * 7 + [1] * 3)
    outside, _ = judge(spec_of(), prepared, folder)
    with connect.session():
        inside, recorder = judge(spec_of(), prepared, folder)
        assert inside.metrics == outside.metrics
        assert inside.confusion == outside.confusion
        assert len(recorder.files) == 3
        with pytest.raises(InputError, match="apart, the data has") as caught:
            judge(spec_of(), mails(tmp_path / "e", [0, 1], names=("ham", "spam")), folder)
        assert type(caught.value) is InputError
