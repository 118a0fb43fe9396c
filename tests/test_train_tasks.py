"""The tasks: models from folders that fit and do not fit, the Hugging Face layout, estimators and their files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import train_tiny as tiny

from cluster.errors import InputError
from cluster.spec import Train
from train.tasks import trainer

SETUP: dict[str, Any] = {"labels": ["bad", "good"], "from_scratch": False, "seed": 3, "max_length": 16}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("bert"))


def test_a_saved_text_model_is_a_hugging_face_folder(tmp_path: Path, bert: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    task = trainer("text-classification")
    net = task.setup(bert, **SETUP).eval()
    task.save(net, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(tmp_path.glob("*.bin"))

    rows = [{"text": "good1 good2 bad3", "label": 1}, {"text": "bad1", "label": 0}]
    batch = task.collate(rows)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 27, 3], [2, 25, 3, 0, 0]]
    assert batch.pop("labels").tolist() == [1, 0]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        mine = net(**batch).logits
        theirs = plain(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
        again = trainer("text-classification").load(tmp_path)(**batch).logits
    assert torch.equal(mine, theirs)
    assert torch.equal(mine, again)
    assert plain.config.id2label == {0: "bad", 1: "good"}
    answer = pipeline("text-classification", model=str(tmp_path))("good1 good2 bad3")[0]
    assert answer["label"] == ["bad", "good"][int(mine[0].argmax())]


def test_inputs_are_cut_to_max_length_now_and_when_loaded(tmp_path: Path, bert: Path) -> None:
    task = trainer("text-classification")
    net = task.setup(bert, **SETUP)
    long = [{"text": " ".join(["good1"] * 100), "label": 0}]
    assert task.collate(long)["input_ids"].shape == (1, 16)
    task.save(net, tmp_path)
    loaded = trainer("text-classification")
    loaded.load(tmp_path)
    assert loaded.collate(long)["input_ids"].shape == (1, 16)
    # The tokenizer knows no limit; the model has 40 positions, two of which RoBERTa's kin could not use.
    task.setup(bert, **{**SETUP, "max_length": 1000})
    assert task.collate(long)["input_ids"].shape == (1, 38)


def test_pairs_of_texts_are_told_apart(bert: Path) -> None:
    task = trainer("text-classification")
    task.setup(bert, **SETUP)
    batch = task.collate([{"text": "good1", "text_pair": "bad1", "label": 0}])
    assert batch["input_ids"].tolist() == [[2, 5, 3, 25, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_a_head_for_other_labels_is_new_and_the_same_every_time(bert: Path) -> None:
    import torch

    three = {**SETUP, "labels": ["a", "b", "c"]}
    first, second, other = (
        trainer("text-classification").setup(bert, **{**three, "seed": seed}).state_dict() for seed in (3, 3, 4)
    )
    old = trainer("text-classification").setup(bert, **SETUP).state_dict()
    assert first["classifier.weight"].shape[0] == 3
    assert torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    body = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first[body], old[body])
    assert torch.equal(first[body], other[body])


def test_from_scratch_needs_no_weights_and_is_seeded(tmp_path: Path, bert: Path) -> None:
    import torch

    bare = tiny.bert(tmp_path / "bare", weights=False)
    with pytest.raises(InputError, match=r"no weights in it; .*train\.from_scratch: true"):
        trainer("text-classification").setup(bare, **SETUP)
    scratch = {**SETUP, "from_scratch": True}
    body = "bert.encoder.layer.0.attention.self.query.weight"
    first, second = (trainer("text-classification").setup(bare, **scratch).state_dict()[body] for _ in range(2))
    assert torch.equal(first, second)
    whole = trainer("text-classification").setup(bert, **scratch).state_dict()[body]
    assert torch.equal(first, whole), "weights that are there are not used"


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, bert: Path) -> None:
    import torch
    from safetensors.torch import save_file

    vit = tiny.vit(tmp_path / "vit")
    tiny_tokenizer_into(vit, bert)
    with pytest.raises(InputError, match="a vit model cannot do text-classification"):
        trainer("text-classification").setup(vit, **SETUP)
    with pytest.raises(InputError, match="no image processor"):
        trainer("image-classification").setup(bert, **SETUP)

    other = tiny.bert(tmp_path / "other")
    save_file({"something.else": torch.zeros(3)}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="its weights cover only 0% of a bert model"):
        trainer("text-classification").setup(other, **SETUP)
    (other / "model.safetensors").unlink()
    torch.save({}, other / "pytorch_model.bin")
    with pytest.raises(InputError, match="convert to safetensors"):
        trainer("text-classification").setup(other, **SETUP)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no tokenizer that can be read"):
        trainer("text-classification").setup(other, **SETUP)


def tiny_tokenizer_into(folder: Path, source: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path, bert: Path) -> None:
    folder = tiny.bert(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    config["eos_token"] = "[SEP]"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    task = trainer("text-classification")
    net = task.setup(folder, **SETUP)
    batch = task.collate([{"text": "good1 good2", "label": 0}, {"text": "bad1", "label": 0}])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 25, 3, 3]]
    assert net.config.pad_token_id == 3


def test_pictures_become_what_the_model_takes(tmp_path: Path) -> None:
    folder = tiny.vit(tmp_path / "vit")
    prepared = tiny.digits_data(tmp_path / "data", rows=4, held_out=2)
    task = trainer("image-classification")
    net = task.setup(folder, **{**SETUP, "labels": prepared.labels, "from_scratch": True})
    from train.batches import Rows

    rows = Rows(prepared.file("train"))
    batch = task.collate(rows.take(np.arange(4)))
    assert batch["pixel_values"].shape == (4, 1, 8, 8)
    assert float(batch["pixel_values"].min()) == -1.0
    assert batch["labels"].tolist() == list(rows.labels)
    assert net(pixel_values=batch["pixel_values"]).logits.shape == (4, 10)
    with pytest.raises(InputError, match="a picture of 4 bytes cannot be decoded"):
        task.collate([{"image": b"nope", "label": 0}])


@pytest.mark.slow
def test_digits_are_learned_by_a_tiny_vit(tmp_path: Path) -> None:
    from test_train_loop import curve, run

    folder = tiny.vit(tmp_path / "vit")
    prepared = tiny.digits_data(tmp_path / "data", rows=600, held_out=100)
    spec = tiny.spec(
        folder, task="image-classification", from_scratch=True, epochs=8, batch_size=40, learning_rate=4e-3
    )
    metrics = run(spec, prepared, tmp_path / "run")
    losses = list(curve(tmp_path / "run").values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert metrics["validation/accuracy"] > 0.5
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").config.id2label[7] == "7"
    assert AutoImageProcessor.from_pretrained(tmp_path / "run" / "model").size["height"] == 8


def fit(folder: Path, model: str, **train: Any) -> dict[str, float]:
    prepared = tiny.iris_data(folder / "data")
    spec = tiny.spec(model, task="tabular-classification", **train)
    return trainer(spec.task).fit(spec, prepared.folder, prepared.labels, folder / "model")


def test_a_forest_learns_iris_and_reloads_from_skops(tmp_path: Path) -> None:
    metrics = fit(tmp_path, "sklearn.ensemble.RandomForestClassifier", parameters={"n_estimators": 30})
    assert metrics["validation/accuracy"] > 0.9
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.skops", "config.json"}
    again = trainer("tabular-classification")
    again.load(tmp_path / "model")
    assert again.labels == ["setosa", "versicolor", "virginica"]
    assert again.features["place"] == "categorical"
    # A flower of each kind; one with a cell missing and a category that was never seen.
    flowers = {
        "f0": [5.1, None, 6.3],
        "f1": [3.5, 2.8, 3.3],
        "f2": [1.4, 4.5, 6.0],
        "f3": ["0.2", "1.3", "2.5"],
        "place": ["north", "the moon", None],
    }
    scores = again.predict(flowers)
    assert scores.shape == (3, 3)
    assert scores.sum(axis=1) == pytest.approx(1)
    assert list(scores.argmax(axis=1)) == [0, 1, 2]
    with pytest.raises(InputError, match="columns missing: f3"):
        again.predict({name: values for name, values in flowers.items() if name != "f3"})
    with pytest.raises(InputError, match="column 'f0': holds text"):
        again.predict({**flowers, "f0": ["wide", "1", "2"]})


@pytest.mark.parametrize(
    "model",
    [
        "sklearn.linear_model.LogisticRegression",
        "sklearn.svm.LinearSVC",
        "sklearn.ensemble.HistGradientBoostingClassifier",
    ],
)
def test_other_classifiers_do_too(tmp_path: Path, model: str) -> None:
    metrics = fit(tmp_path, model, class_weights="balanced")
    assert metrics["validation/accuracy"] > 0.85
    again = trainer("tabular-classification")
    again.load(tmp_path / "model")
    assert (
        again.predict({f"f{i}": [5.0, 3.4, 1.5, 0.2][i : i + 1] for i in range(4)} | {"place": ["north"]}).argmax() == 0
    )


def test_the_same_seed_gives_the_same_file_of_trees(tmp_path: Path) -> None:
    forest = "sklearn.ensemble.RandomForestClassifier"
    scores = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(tmp_path / name, forest, seed=seed, parameters={"n_estimators": 5})
        task = trainer("tabular-classification")
        task.load(tmp_path / name / "model")
        scores.append(task.predict({f"f{i}": np.linspace(0, 7, 50) for i in range(4)} | {"place": ["north"] * 50}))
    assert (scores[0] == scores[1]).all()
    assert (scores[0] != scores[2]).any()


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ("sklearn.ensemble.RandomForest", {}, r"model: sklearn\.ensemble\.RandomForest is not in scikit-learn"),
        ("sklearn.nowhere.Classifier", {}, "is not in scikit-learn"),
        ("sklearn.linear_model.Ridge", {}, r"sklearn\.linear_model\.Ridge is no classifier"),
        ("sklearn.datasets.load_iris", {}, "is no classifier"),
        (
            "sklearn.tree.DecisionTreeClassifier",
            {"parameters": {"depth": 3}},
            r"train\.parameters: DecisionTreeClassifier does not take depth; it takes criterion, splitter, max_depth",
        ),
        (
            "sklearn.tree.DecisionTreeClassifier",
            {"parameters": {"max_depth": -1}},
            r"train\.parameters: sklearn\.tree\.DecisionTreeClassifier refused to learn: The 'max_depth' parameter",
        ),
        ("sklearn.ensemble.VotingClassifier", {}, r"train\.parameters: VotingClassifier needs estimators"),
        (
            "sklearn.neighbors.KNeighborsClassifier",
            {"class_weights": "balanced"},
            r"train\.class_weights: sklearn\.neighbors\.KNeighborsClassifier cannot weigh classes; write none",
        ),
    ],
)
def test_what_is_no_classifier_or_no_parameter_is_refused(
    tmp_path: Path, model: str, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, model, **train)


def test_seed_and_weights_of_the_file_reach_the_estimator() -> None:
    from train.tasks.tabular import estimator

    forest = estimator("sklearn.ensemble.RandomForestClassifier", Train(seed=9, class_weights="balanced"))
    assert (forest.random_state, forest.class_weight) == (9, "balanced")
    mine = estimator("sklearn.ensemble.RandomForestClassifier", Train(parameters={"random_state": 4}))
    assert (mine.random_state, mine.class_weight) == (4, None)


def test_a_malicious_model_file_is_refused(tmp_path: Path) -> None:
    import os

    fit(tmp_path, "sklearn.tree.DecisionTreeClassifier")
    file = tmp_path / "model" / "model.skops"
    with ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = members["schema.json"].decode()
    evil = schema.replace('"__class__": "DecisionTreeClassifier"', '"__class__": "system"', 1)
    evil = evil.replace('"__module__": "sklearn.tree._classes"', f'"__module__": "{os.name}"', 1)
    assert evil != schema
    with ZipFile(file, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, evil if name == "schema.json" else raw)
    with pytest.raises(InputError, match=r"holds .*system.*; only types of scikit-learn"):
        trainer("tabular-classification").load(tmp_path / "model")
    file.write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="not a skops file"):
        trainer("tabular-classification").load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a tabular model's"):
        trainer("tabular-classification").load(tmp_path / "model")
