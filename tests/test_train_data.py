"""From a file's data section to prepared rows: every format, every refusal, duplicates, splits and the cache."""

import csv
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import InputError, RunFailed
from cluster.spec import parse
from train.data import Prepared, prepare

ROWS = [(f"mail number {i}", "spam" if i % 4 == 0 else "ham") for i in range(40)]


def spec_of(folder, data, task="text-classification", train="{}"):
    return parse(f"name: a\ntask: {task}\nmodel: ./base\ntrain: {train}\ndata: {data}").at(folder)


def write_csv(path, rows=ROWS, header=("text", "label"), delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


def picture(colour, size=(8, 8), form="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


def write_pictures(root, per_class=6, classes=("0", "10", "2")):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i}.png").write_bytes(picture((number * 80, i * 10, 5)))


def read(prepared, split):
    return pq.read_table(prepared.file(split)).to_pylist()


def refused(folder, data, *parts, task="text-classification"):
    """The message of the refusal, which holds all parts and is one line."""
    with pytest.raises(InputError) as caught:
        prepare(spec_of(folder, data, task), into=folder / "out")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert not list((folder / "out").glob("*.part"))
    return message


def test_every_format_gives_the_same_rows(tmp_path):
    write_csv(tmp_path / "a.csv")
    write_csv(tmp_path / "a.tsv", delimiter="\t")
    records = [{"text": text, "label": label, "extra": {"deep": [1]}} for text, label in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(records, indent=1))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    made = []
    for ending in ("csv", "tsv", "jsonl", "json", "parquet"):
        prepared = prepare(spec_of(tmp_path, f"{{train: a.{ending}}}"), into=tmp_path / "out")
        assert prepared.labels == ["ham", "spam"]
        assert prepared.rows == {"train": 36, "validation": 4}
        made.append((read(prepared, "train"), read(prepared, "validation")))
    assert all(one == made[0] for one in made)
    seen = {row["text"]: prepared.labels[row["label"]] for part in made[0] for row in part}
    assert seen == dict(ROWS)


def test_text_of_csv_stays_as_it_is_written(tmp_path):
    rows = [("007", "1"), ("NA", "10"), ("a\nb", "2"), ("", "1"), ('say "x", y', "10"), ("1.50", "2")] * 2
    write_csv(tmp_path / "a.csv", rows)
    prepared = prepare(
        spec_of(tmp_path, "{train: a.csv, validation: a.csv, columns: {text: text}}"), into=tmp_path / "out"
    )
    assert [row["text"] for row in read(prepared, "train")] == [text for text, _ in rows]
    assert prepared.labels == ["1", "2", "10"]  # whole numbers in their order
    assert [row["label"] for row in read(prepared, "train")][:3] == [0, 2, 1]


def test_labels_of_any_type_become_text(tmp_path):
    for values, labels in [([True, False], ["false", "true"]), ([3.0, 12.0], ["3", "12"]), ([-1, 1], ["-1", "1"])]:
        pq.write_table(pa.table({"text": ["a", "b"] * 4, "label": values * 4}), tmp_path / "a.parquet")
        assert prepare(spec_of(tmp_path, "{train: a.parquet}"), into=tmp_path / "out").labels == labels


def test_class_labels_of_datasets_keep_their_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["world", "sports"])})
    rows = {"text": list("abcd"), "label": [0, 1, 1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    prepared = prepare(spec_of(tmp_path, "{train: a.parquet, validation: a.parquet}"), into=tmp_path / "out")
    assert prepared.labels == ["sports", "world"]
    assert [row["label"] for row in read(prepared, "train")] == [1, 0, 0, 1]


def test_pairs_of_texts(tmp_path):
    rows = [(f"q{i}", f"a{i}", str(i % 2)) for i in range(20)]
    write_csv(tmp_path / "a.csv", rows, header=("question", "answer", "label"))
    prepared = prepare(
        spec_of(tmp_path, "{train: a.csv, columns: {text: question, text_pair: answer}}"), into=tmp_path / "out"
    )
    row = read(prepared, "validation")[0]
    assert row["text"][1:] == row["text_pair"][1:]
    assert row["text_pair"].startswith("a")


def test_number_of_rows(tmp_path):
    write_csv(tmp_path / "a.csv")
    prepared = prepare(spec_of(tmp_path, "{train: 'a.csv#12', validation: 'a.csv#1'}"), into=tmp_path / "out")
    assert prepared.rows == {"train": 12, "validation": 1}
    assert [row["text"] for row in read(prepared, "train")] == [text for text, _ in ROWS[:12]]


def test_pictures_keep_their_bytes_and_every_class_is_taken_from(tmp_path):
    write_pictures(tmp_path / "p")
    (tmp_path / "p" / "0" / "notes.txt").write_text("x")
    (tmp_path / "p" / ".DS_Store").write_text("x")
    prepared = prepare(spec_of(tmp_path, "{train: 'p#5', test: p}", "image-classification"), into=tmp_path / "out")
    assert prepared.labels == ["0", "2", "10"]
    assert prepared.rows == {"train": 4, "validation": 1, "test": 18}
    assert prepared.judged == "test"
    taken = Counter(row["label"] for split in ("train", "validation") for row in read(prepared, split))
    assert sorted(taken.values()) == [1, 2, 2]
    originals = {path.read_bytes() for path in (tmp_path / "p").glob("*/*.png")}
    assert {row["image"] for row in read(prepared, "test")} == originals
    assert prepared.report["skipped"] == {"train": 1, "test": 1}
    assert prepared.report["duplicates"]["train-test"] == 5


def test_pictures_of_parquet(tmp_path):
    images = [{"bytes": picture((i, 0, 0)), "path": f"{i}.png"} for i in range(8)]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 4}), tmp_path / "a.parquet")
    prepared = prepare(spec_of(tmp_path, "{train: a.parquet}", "image-classification"), into=tmp_path / "out")
    found = {row["image"] for split in ("train", "validation") for row in read(prepared, split)}
    assert found == {image["bytes"] for image in images}


def test_features_of_a_table(tmp_path):
    rows = [(i, i / 2, "red" if i % 2 else "", "true", "" if i == 3 else i, f"0{i}x", i % 3) for i in range(12)]
    write_csv(tmp_path / "a.csv", rows, header=("whole", "half", "colour", "flag", "gap", "code", "species"))
    data = "{train: a.csv, columns: {label: species}, validation: a.csv}"
    prepared = prepare(spec_of(tmp_path, data, "tabular-classification"), into=tmp_path / "out")
    kinds = {"whole": "numeric", "half": "numeric", "colour": "categorical", "flag": "categorical", "gap": "numeric"}
    assert prepared.report["features"] == {**kinds, "code": "categorical"}
    assert json.loads((prepared.folder / "data.json").read_text())["features"] == prepared.report["features"]
    row = read(prepared, "train")[3]
    assert row == {"whole": 3.0, "half": 1.5, "colour": "red", "flag": "true", "gap": None, "code": "03x", "label": 0}
    assert read(prepared, "train")[2]["colour"] is None

    some = prepare(
        spec_of(tmp_path, data.replace("species", "species, features: [half, flag]"), "tabular-classification"),
        into=tmp_path / "out",
    )
    assert list(read(some, "train")[0]) == ["half", "flag", "label"]


def test_features_take_the_type_of_training(tmp_path):
    records = [{"size": 1, "zip": "01", "ok": i % 2 == 0, "label": i % 2} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_csv(tmp_path / "b.csv", [("7", "2", "true", 1)], header=("zip", "size", "ok", "label"))
    data = "{train: a.jsonl, test: b.csv}"
    prepared = prepare(spec_of(tmp_path, data, "tabular-classification"), into=tmp_path / "out")
    assert prepared.report["features"] == {"size": "numeric", "zip": "categorical", "ok": "categorical"}
    assert read(prepared, "test") == [{"size": 2.0, "zip": "7", "ok": "true", "label": 1}]
    write_csv(
        tmp_path / "b.csv", [("7", "2", "true", 1), ("7", "big", "true", 1)], header=("zip", "size", "ok", "label")
    )
    refused(
        tmp_path, data, "data.test", "b.csv", "'size'", "row 2", "'big'", "not a number", task="tabular-classification"
    )


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["a.csv: empty"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0", ["binary"]),
        (b"text,label\n", ["no rows"]),
        (b"text,label\nx,1\ny\nz,2\n", ["ragged", "Row #3", "Expected 2 columns, got 1"]),
        (b"text,label\nx,1\n\xff,2\n", ["line 3", "0xff", "UTF-8"]),
        (b"te\xffxt,label\nx,1\n", ["column's name is not UTF-8"]),
        (b'text,label\nx,1\ny,"2\nz,1\n', ["never closed"]),
        (b'text,label\nx,1\n"y,2\nz,1\n', ["ragged", "close every quote"]),
        (b"text,text\nx,1\n", ["'text'", "twice"]),
        (b"texd,label\nx,1\n", ["no column 'text'", "did you mean 'texd'", "'label'", "data.columns.text"]),
        (b"text,stars\nx,1\n", ["no column 'label'", "'stars'", "data.columns.label"]),
        (b"text,label\nx,1\ny,\nz,2\n", ["1 rows have no label", "row 2"]),
        (b"text,label\nx,1\ny,1\nz,1\n", ["one class only", "'1'", "3 rows"]),
        (b"text,label\nx,1\ny,2\nz,3\n", ["3 rows and 3 classes", "data.validation_split"]),
    ],
)  # fmt: skip
def test_bad_csv_is_one_message(tmp_path, content, parts):
    (tmp_path / "a.csv").write_bytes(content)
    refused(tmp_path, "{train: a.csv}", "data", *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"text": "a", "label": 1}\n{"text": ', ["line 2", "not JSON"]),
        (b'{"text": "a", "label": 1}\n[1]\n', ["line 2", "a list, not an object"]),
        (b'{"text": "a", "label": 1}\n{"text": 5, "label": 1}\n', ["'text'", "row 2 has a number", "row 1 has text"]),
        (b'{"text": 1, "label": 1}\n{"text": 5, "label": 2}\n', ["'text'", "holds numbers, not text", "row 1: 1"]),
        (b'{"text": "a", "label": 1}\n{"label": 1}\n', ["'text'", "row 2 has no text"]),
        (b'{"text": "a", "label": 0.5}\n', ["row 1 has 0.5", "a class is text"]),
        (b'{"text": "a", "label": null}\n', ["no label"]),
        (b'{"text": "a", "label": [1]}\n', ["row 1 has [1]"]),
        (b'{"text": "\xff"}\n', ["line 1", "UTF-8"]),
        (b"[" * 100_000, ["not JSON that can be read"]),
    ],
)  # fmt: skip
def test_bad_json_is_one_message(tmp_path, content, parts):
    (tmp_path / "a.jsonl").write_bytes(content)
    refused(tmp_path, "{train: a.jsonl}", "data.train: a.jsonl", *parts)


def test_other_bad_sources(tmp_path):
    write_csv(tmp_path / "a.csv")
    refused(tmp_path, "{}", "data.train: missing")
    refused(tmp_path, "{train: no.csv}", "data.train", "no.csv", "no such file")
    (tmp_path / "a.parquet").write_bytes(b"text,label\nx,1\n")
    refused(tmp_path, "{train: a.parquet}", "a.parquet: not parquet that can be read")
    pq.write_table(pa.table({"text": ["ab", "cd"], "label": [1, 2]}), tmp_path / "a.parquet", compression="none")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes().replace(b"cd", b"c\xe0"))
    refused(tmp_path, "{train: a.parquet}", "a.parquet: not parquet that can be read", "UTF8")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    refused(tmp_path, "{train: a.txt}", "no column 'label'", "there are 'text'")
    refused(tmp_path, "{train: a.csv, columns: {txt: text}}", "data.columns.txt", "did you mean text?")
    refused(tmp_path, "{train: a.csv, columns: {text: [text]}}", "data.columns.text", "name one column")
    refused(tmp_path, "{train: a.csv, columns: {text: body}}", "no column 'body'")
    refused(tmp_path, "{train: a.csv, validation_split: 0}", "data.validation_split: 0")
    write_csv(tmp_path / "b.csv", [("x", "ham"), ("y", "eggs"), ("z", "eggs")])
    refused(tmp_path, "{train: a.csv, test: b.csv}", "data.test: b.csv", "'eggs' in row 2, 3", "training has ham, spam")
    (tmp_path / "d").mkdir()
    refused(tmp_path, "{train: d}", "data.train: d", "columns text, label")


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    place = "data.train: hf://no-such-org/no-such-set: could not be loaded"
    refused(tmp_path, "{train: hf://no-such-org/no-such-set}", place, "check the name", "give a local file")


def test_bad_tables(tmp_path):
    task = "tabular-classification"
    write_csv(tmp_path / "a.csv", [(1, "", 1), (2, "", 2), (3, "", 1)], header=("x", "empty", "label"))
    refused(tmp_path, "{train: a.csv}", "column 'empty' is empty", "data.columns.features", task=task)
    write_csv(tmp_path / "a.csv", [(1, 1), ("1e999", 2), (3, 1)], header=("x", "label"))
    refused(tmp_path, "{train: a.csv}", "column 'x': row 2 has inf", task=task)
    write_csv(tmp_path / "a.csv", [(1, 1), (2, 2)], header=("", "label"))
    refused(tmp_path, "{train: a.csv}", "without a name", task=task)
    write_csv(tmp_path / "a.csv", [(1,), (2,)], header=("label",))
    refused(tmp_path, "{train: a.csv}", "nothing to learn from", task=task)
    refused(tmp_path, "{train: a.csv, columns: {features: [age]}}", "no column 'age', needed as features", task=task)
    refused(tmp_path, "{train: a.csv, columns: {features: label}}", "write a list, [label]", task=task)


def test_bad_pictures(tmp_path):
    task = "image-classification"
    write_pictures(tmp_path / "p", per_class=2)
    bad = tmp_path / "p" / "10" / "bad.png"
    for content in (b"no picture", picture((1, 2, 3), size=(200, 200))[:-80], b""):
        bad.write_bytes(content)
        refused(tmp_path, "{train: p}", str(bad), "cannot be decoded", task=task)
    # A few kilobytes that unfold to 400 million pixels.
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    bad.write_bytes(stream.getvalue())
    refused(tmp_path, "{train: p}", str(bad), task=task)
    bad.unlink()
    (tmp_path / "p" / "1").mkdir()
    refused(tmp_path, "{train: p}", "no pictures in the class folder 1", task=task)
    (tmp_path / "p" / "1").rmdir()
    (tmp_path / "p" / "lost.png").write_bytes(picture((1, 1, 1)))
    refused(tmp_path, "{train: p}", "lost.png lies outside of any class", task=task)
    write_csv(tmp_path / "a.csv", [("/etc/passwd", 1), ("b", 2)], header=("image", "label"))
    refused(tmp_path, "{train: a.csv}", "'image' holds text, not pictures", task=task)


def test_split_is_stratified_seeded_and_leaves_every_class(tmp_path):
    rows = [(f"t{i}", "rare" if i == 0 else "b" if i % 5 == 0 else "a") for i in range(100)]
    write_csv(tmp_path / "a.csv", rows)
    data = "{train: a.csv, validation_split: 0.2}"
    one = prepare(spec_of(tmp_path, data), into=tmp_path / "out")
    assert one.rows == {"train": 80, "validation": 20}
    assert one.report["classes"]["validation"] == {"a": 16, "b": 4, "rare": 0}
    assert one.report["classes"]["train"]["rare"] == 1
    again = prepare(spec_of(tmp_path, data), into=tmp_path / "elsewhere")
    assert read(again, "validation") == read(one, "validation")
    other = prepare(spec_of(tmp_path, data, train="{seed: 7}"), into=tmp_path / "out")
    assert read(other, "validation") != read(one, "validation")
    write_csv(tmp_path / "b.csv", [("x", "a"), ("y", "a"), ("z", "b")])
    few = prepare(spec_of(tmp_path, "{train: b.csv, validation_split: 0.01}"), into=tmp_path / "out")
    assert few.rows == {"train": 2, "validation": 1}
    assert few.report["classes"] == {"train": {"a": 1, "b": 1}, "validation": {"a": 1, "b": 0}}


def test_duplicates_are_counted_and_dropped(tmp_path):
    train = [("same", "a"), ("same", "a"), ("same", "b"), ("held", "a"), *((f"u{i}", "ab"[i % 2]) for i in range(6))]
    write_csv(tmp_path / "a.csv", train)
    write_csv(tmp_path / "t.csv", [("held", "a"), ("new", "b"), ("new", "b")])
    counted = prepare(spec_of(tmp_path, "{train: a.csv, validation: t.csv, test: t.csv}"), into=tmp_path / "out")
    assert counted.report["duplicates"] == {
        "train": 2, "validation": 1, "test": 1, "train-validation": 1, "train-test": 1, "validation-test": 3
    }  # fmt: skip
    assert counted.report["conflicting_labels"] == 1
    assert counted.rows == {"train": 10, "validation": 3, "test": 3}
    assert counted.report["notes"] == [
        "exact duplicates, 2 in train, 1 in validation, 1 in test; data.drop_duplicates: true drops them",
        "rows of train that stand in validation too: 1; it scores too well by that, data.drop_duplicates: true drops "
        "them",
        "rows of train that stand in test too: 1; it scores too well by that, data.drop_duplicates: true drops them",
        "rows of validation that stand in test too: 3",
        "inputs that stand with more than one label: 1",
    ]
    dropped = prepare(spec_of(tmp_path, "{train: a.csv, test: t.csv, drop_duplicates: true}"), into=tmp_path / "out")
    assert dropped.rows == {"train": 6, "validation": 1, "test": 2}
    assert dropped.report["dropped"] == {"train": 3, "test": 1}
    assert dropped.report["notes"][0] == "duplicates dropped: 3 in train, 1 in test"
    texts = [row["text"] for split in ("train", "validation") for row in read(dropped, split)]
    assert sorted(texts) == ["same", *(f"u{i}" for i in range(6))]
    refused(
        tmp_path, "{train: t.csv, test: t.csv, drop_duplicates: true}", "data.drop_duplicates", "every training row"
    )


def test_made_split_never_shares_a_row_once_duplicates_are_dropped(tmp_path):
    write_csv(tmp_path / "a.csv", [(f"t{i % 30}", "ab"[i % 2]) for i in range(90)])
    data = "{train: a.csv, validation_split: 0.3}"
    assert prepare(spec_of(tmp_path, data), into=tmp_path / "out").report["duplicates"]["train-validation"] > 0
    clean = prepare(spec_of(tmp_path, data[:-1] + ", drop_duplicates: true}"), into=tmp_path / "out")
    assert clean.report["duplicates"] == {"train": 60, "validation": 0, "train-validation": 0}
    assert clean.rows == {"train": 21, "validation": 9}


def test_rows_of_a_table_with_other_labels_are_no_duplicates(tmp_path):
    write_csv(tmp_path / "a.csv", [(1, "a"), (1, "b"), (1, "b"), (2, "a")], header=("x", "label"))
    spec = spec_of(tmp_path, "{train: a.csv, validation: a.csv}", "tabular-classification")
    assert prepare(spec, into=tmp_path / "out").report["duplicates"]["train"] == 1


def test_digest_is_of_the_content_not_the_path(tmp_path):
    write_csv(tmp_path / "a.csv")
    (tmp_path / "b").mkdir()
    write_csv(tmp_path / "b" / "other.csv")
    first = prepare(spec_of(tmp_path, "{train: a.csv}"), into=tmp_path / "out")
    made = (first.folder / "train.parquet").stat().st_mtime_ns
    same = prepare(spec_of(tmp_path, "{train: b/other.csv}"), into=tmp_path / "out")
    assert same == first
    assert (first.folder / "train.parquet").stat().st_mtime_ns == made
    assert Prepared.open(first.folder) == first
    digests = {first.digest}
    for data, train in (
        ("{train: 'a.csv#30'}", "{}"),
        ("{train: a.csv, drop_duplicates: true}", "{}"),
        ("{train: a.csv, columns: {text: text}}", "{}"),
        ("{train: a.csv}", "{seed: 1}"),
        ("{train: a.csv, test: a.csv}", "{}"),
    ):
        digests.add(prepare(spec_of(tmp_path, data, train=train), into=tmp_path / "out").digest)
    assert len(digests) == 6
    assert prepare(spec_of(tmp_path, "{train: a.csv}", train="{epochs: 9}"), into=tmp_path / "out") == first
    with (tmp_path / "a.csv").open("a") as file:
        file.write("one more,ham\n")
    assert prepare(spec_of(tmp_path, "{train: a.csv}"), into=tmp_path / "out").digest not in digests


def test_damaged_folder_is_made_again(tmp_path):
    write_csv(tmp_path / "a.csv")
    first = prepare(spec_of(tmp_path, "{train: a.csv}"), into=tmp_path / "out")
    expected = read(first, "train")
    for name, content in (("data.json", "{"), ("train.parquet", None)):
        if content is None:
            (first.folder / name).unlink()
        else:
            (first.folder / name).write_text(content)
        (tmp_path / "out" / f"{first.digest}.part").mkdir()
        assert read(prepare(spec_of(tmp_path, "{train: a.csv}"), into=tmp_path / "out"), "train") == expected


def test_two_processes_at_once_give_one_folder(tmp_path):
    write_csv(tmp_path / "a.csv", ROWS * 200)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(_prepare, [(tmp_path,)] * 3)
    assert found[0] == found[1] == found[2]
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == 1


def _prepare(folder: Path) -> Prepared:
    return prepare(spec_of(folder, "{train: a.csv}"), into=folder / "out")


def test_progress_is_told(tmp_path):
    write_pictures(tmp_path / "p")
    told = []
    prepare(
        spec_of(tmp_path, "{train: p}", "image-classification"),
        into=tmp_path / "out",
        progress=lambda stage, done, total, note="": told.append((stage, done, total)),
    )
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["hash data", "check pictures", "write data"]
    assert all(done <= total for _, done, total in told)
    assert told[-1] == ("write data", 18, 18)


def test_hub_rows_by_split(tmp_path, monkeypatch):
    # A folder of this name in the working directory stands for the Hub: `datasets` loads it by the same call.
    (tmp_path / "mails").mkdir()
    write_csv(tmp_path / "mails" / "train.csv")
    write_csv(tmp_path / "mails" / "test.csv", ROWS[:10])
    monkeypatch.chdir(tmp_path)
    prepared = prepare(spec_of(tmp_path, "{train: hf://mails, test: 'hf://mails#6'}"), into=tmp_path / "out")
    assert prepared.rows == {"train": 36, "validation": 4, "test": 6}
    assert [row["text"] for row in read(prepared, "test")] == [text for text, _ in ROWS[:6]]
    refused(tmp_path, "{train: hf://mails, validation: hf://mails}", "data.validation", "no split named validation")
    assert set(os.listdir(tmp_path)) == {"mails", "out"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_full_disk_leaves_nothing_half_written(tmp_path):
    write_csv(tmp_path / "a.csv", [(f"{i} {os.urandom(200).hex()}", i % 2) for i in range(20_000)])
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        with pytest.raises(RunFailed, match=rf"{disk}.*the disk is full \(\d+ MiB free\).*SHOAL_HOME"):
            prepare(spec_of(tmp_path, "{train: a.csv}"), into=disk / "data")
        assert [path.suffix for path in (disk / "data").iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_import_is_light():
    heavy = "{'torch', 'ray', 'datasets', 'transformers', 'sklearn', 'mlflow', 'matplotlib', 'evaluate'}"
    code = f"import sys, train.data, train.metrics; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
