"""From a model's file to rows ready for training: checked, labelled, split, written once for each different content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from cluster.errors import InputError
from cluster.progress import Progress, silent
from cluster.spec import Spec
from cluster.tasks import trainable
from cluster.tasks.row import Task
from train.data import columns, generation, labels, pictures, store
from train.data.notes import notes
from train.data.sources import Source, described, find
from train.data.split import Rows, conflicts, drop_duplicates, duplicates, hold_out, keys
from train.data.store import SPLITS, Prepared


def prepare(spec: Spec, *, into: Path, progress: Progress = silent) -> Prepared:
    """The data of a model's file, ready for training, in a folder of `into` named by the digest of its content.

    The same content prepared before, by whatever path, is not prepared again.
    Raises InputError for data the task cannot learn from, naming key, place and remedy; RunFailed where the disk is
    full or `into` cannot be written.
    """
    # What the file asks for.
    task = trainable(spec)
    roles = columns.roles(task, spec.data)
    refs = {split: ref for split in SPLITS if (ref := spec.data_ref(split)) is not None}
    if "train" not in refs:
        raise InputError("data.train: missing; name the rows to learn from, e.g. data: {train: train.csv}")
    for split, ref in refs.items():
        needed = [name for name, required in task.columns.items() if required or not any(task.columns.values())]
        if ref.kind == "folder" and "image" not in task.columns:
            raise InputError(
                f"data.{split}: {ref.text}: a folder is pictures by class; {spec.task} needs a file with columns "
                f"{', '.join(needed)}"
            )
    if "validation" not in refs and spec.data.validation_split == 0:
        raise InputError(
            "data.validation_split: 0 leaves no rows to watch training by; write 0.1, or give data.validation"
        )

    # The bytes it names: what is prepared already is used.
    with store.room(into):
        into.mkdir(parents=True, exist_ok=True)
        sources = {split: find(ref, split=split, cache=into / "hub", progress=progress) for split, ref in refs.items()}
        digest = store.digest(
            {
                "task": spec.task,
                "seed": spec.train.seed,
                "sources": {name: (source.sha256, source.ref.kind, source.ref.format, source.ref.rows)
                            for name, source in sources.items()},
                "data": spec.data.model_dump(include={"columns", "validation_split", "drop_duplicates"}),
            }
        )  # fmt: skip
        with FileLock(into / f"{digest}.lock"):
            if found := Prepared.open(into / digest):
                return found

            # Rows, in canonical columns.
            splits: dict[str, Rows] = {}
            kinds: dict[str, columns.Kind] = {}
            for split, source in sources.items():
                splits[split], kinds = _rows(spec, task, roles, source, kinds, progress)
            report = {
                "task": spec.task,
                "columns": {**roles, **({"features": list(kinds)} if kinds else {})},
                "sources": {split: described(source) for split, source in sources.items()},
                "skipped": {split: source.skipped for split, source in sources.items() if source.skipped},
            }
            if kinds:
                report["features"] = kinds

            # Duplicates, before the split that none of them may straddle; then the validation rows.
            counted = duplicates(splits)
            report["conflicting_labels"] = conflicts(splits)
            before = {split: len(rows) for split, rows in splits.items()}
            if spec.data.drop_duplicates:
                splits = drop_duplicates(splits)
            report["dropped"] = {split: before[split] - len(rows) for split, rows in splits.items()}
            where = sources["train"].where
            labelled = "label" in task.columns
            known = labels.classes(splits["train"].labels, name=roles["label"], where=where) if labelled else []
            if "validation" not in splits:
                train, validation = hold_out(splits["train"], share=spec.data.validation_split, seed=spec.train.seed)
                splits = {**splits, "train": train, "validation": validation}
                splits = {split: splits[split] for split in SPLITS if split in splits}
                counted = {**duplicates(splits), **counted}
            report["duplicates"] = counted
            places = {
                split: labels.index(rows.labels, known, where=sources[split].where if split in sources else where)
                for split, rows in splits.items()
                if labelled
            }
            report["classes"] = {split: _counts(rows, known) for split, rows in splits.items() if labelled}
            report["notes"] = notes(report)

            # On disk, whole or not at all.
            return store.write(
                into,
                digest=digest,
                labels=known,
                tables={split: rows.inputs for split, rows in splits.items()},
                places=places,
                report=report,
                progress=progress,
            )


def _rows(
    spec: Spec,
    task: Task,
    roles: dict[str, str],
    source: Source,
    kinds: dict[str, columns.Kind],
    progress: Progress,
) -> tuple[Rows, dict[str, columns.Kind]]:
    """A source's rows, and a table's features as the training rows (the first source) have them."""
    where = source.where
    features = list(kinds) or None
    choose = partial(columns.choose, task=task, data=spec.data, where=where, features=features)
    if source.ref.kind == "folder":
        # The reader of folders names its own columns; data.columns speaks of files.
        roles, choose = {"image": "image", "label": "label"}, list
    if "label" not in task.columns:
        return _unlabelled(spec, roles, source, choose, progress), {}
    table = source.rows(choose, progress)
    found = labels.texts(table[roles["label"]], name=roles["label"], where=where)
    if "features" in task.columns:
        names = features or [name for name in table.column_names if name not in roles.values()]
        kinds = kinds or columns.feature_kinds(table, names, untyped=source.untyped, where=where)
        made = {name: columns.feature(table[name], kinds[name], name=name, where=where) for name in names}
        inputs = pa.table(made)
        return Rows(inputs, found, keys(inputs, found)), kinds
    inputs = pa.table(columns.inputs(table, roles, where=where)) if source.ref.kind != "folder" else table.drop("label")
    if "image" in inputs.column_names:
        return Rows(inputs, found, pictures.check(inputs["image"], where=where, progress=progress)), {}
    return Rows(inputs, found, keys(inputs, None)), {}


def _unlabelled(
    spec: Spec, roles: dict[str, str], source: Source, choose: Callable[[list[str]], list[str]], progress: Progress
) -> Rows:
    """Rows to learn to write from, which have no class."""
    form: tuple[str, ...] = ()

    def chosen(names: list[str]) -> list[str]:
        nonlocal form
        choose(names)  # a column that data.columns names must be there
        form = generation.form(names, roles, spec.data, where=source.where)
        return [roles[role] for role in form]

    table = source.rows(chosen, progress)
    inputs = generation.inputs(table, roles, form, where=source.where)
    return Rows(inputs, [], keys(inputs, None))


def _counts(rows: Rows, known: list[str]) -> dict[str, int]:
    counts = Counter(rows.labels)
    return {label: counts[label] for label in known}
