"""What travels to a cluster: the files of a verb, the data and the local models that they name, and nothing else.

A zip file, as Ray takes it for a job's working directory. Paths in the files it holds are relative, so that they mean
the same there: what lies below a file's folder keeps its place, what lies elsewhere goes to a folder `outside` of it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cluster.errors import InputError, RunFailed, TooLarge
from cluster.progress import Progress, silent
from cluster.spec import DataRef, Spec, data_ref, model_ref
from cluster.spec.load import build, parse_yaml, read_text
from cluster.weights import model_files

LIMIT_MB = 100  # ray_constants.DASHBOARD_CLIENT_MAX_SIZE: what a dashboard takes in one request
STARTER = "shoal_job.py"
# Below the working directory, which Ray puts on the job's import path: a data folder named `train` is no package there.
FOLDER = "files"
_OUTSIDE = "outside"
_SPLITS = ("train", "validation", "test")
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


@dataclass
class Package:
    """A zip file to send. `files` are the verb's own in its FOLDER, `names` the models', `remarks` what a person should
    know; `name` is what Ray calls it: the same content has the same one."""

    path: Path
    name: str = ""
    files: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def pack(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    into: Path,
    data: bool = True,
    shared: Sequence[Path] = (),
    limit_mb: float = LIMIT_MB,
    progress: Progress = silent,
) -> Package:
    """Write the zip file `into`, with `overrides` applied to each of the files.

    `data` says whether their data goes along; a local model always does. What lies in a folder of `shared`, and an
    absolute path that is not here at all, is taken to be on the cluster. Raises InputError, TooLarge.
    """
    package = Package(into)
    contents: dict[str, Path | bytes] = {STARTER: Path(__file__).with_name("starter.py").read_bytes()}
    for number, file in enumerate(files):
        # Each file has a folder of its own: two of them may have one name, and name different things the same.
        root = PurePosixPath(FOLDER, str(number) if len(files) > 1 else "")
        tree, spec = _read(file, overrides)
        sending = _Sending(root, spec.base, tuple(shared), contents, package.remarks)
        sending.model(tree, spec)
        if data:
            sending.data(tree, spec)
        inner = root / Path(file).name
        text = yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=10**6)
        contents[str(inner)] = text.encode()
        package.files.append(str(inner.relative_to(FOLDER)))
        package.names.append(spec.name)
    package.name = f"_ray_pkg_{_zip(contents, into, int(limit_mb * 2**20), progress)}.zip"
    return package


def _read(file: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Spec]:
    """A file as it is written, with the overrides in it, and as a spec."""
    path = Path(file)
    text = read_text(path, remedy=f"`shoal init TASK > {path.name}` writes one to start from")
    tree, lines = parse_yaml(text, where=file)
    spec = build(Spec, tree, lines, overrides, where=file)  # overrides are set in the tree
    return tree, spec.at(path.resolve().parent)


class _Sending:
    """Takes what one file names into a package's contents, and rewrites the file's tree."""

    def __init__(
        self,
        root: PurePosixPath,
        base: Path,
        shared: tuple[Path, ...],
        contents: dict[str, Path | bytes],
        remarks: list[str],
    ) -> None:
        self.root, self.base, self.shared = root, base, shared
        self.contents, self.remarks = contents, remarks
        self._outside: dict[Path, str] = {}

    def model(self, tree: dict[str, Any], spec: Spec) -> None:
        reference = model_ref(spec.model, base=self.base)
        if reference.kind != "local" or reference.path is None or self._there("model", spec.model, reference.path):
            return
        if not reference.path.is_dir():
            raise InputError(f"model: {spec.model!r}: no such folder ({reference.path})")
        place = self._place(reference.path)
        # A leading ./ keeps it a folder's name: `org/name` alone could be the Hub's.
        tree["model"] = f"./{place}"
        for name in sorted(model_files(reference.path)):
            self.contents[str(self.root / place / name)] = reference.path / name

    def data(self, tree: dict[str, Any], spec: Spec) -> None:
        for split in _SPLITS:
            text = getattr(spec.data, split)
            if text is None or text.startswith("hf://"):
                continue
            key = f"data.{split}"
            body, mark, count = text.rpartition("#")
            path = (self.base / Path(body if mark else text).expanduser()).resolve()
            if self._there(key, text, path):
                continue
            found = data_ref(text, base=self.base, key=key)  # raises where it is not there
            assert found.path is not None
            place = self._place(found.path)
            tree["data"][split] = f"{place}#{count}" if mark else place
            for file, inner in _files(found):
                self.contents[str(self.root / place / inner) if inner else str(self.root / place)] = file

    def _there(self, key: str, text: str, path: Path) -> bool:
        """Whether the cluster has it under the same path."""
        if any(path.is_relative_to(folder) for folder in self.shared):
            return self._absolute(key, text)
        if os.path.isabs(text) and not path.exists():
            self.remarks.append(f"{key}: {text} is not on this machine; taken to be on the cluster")
            return True
        return False

    def _absolute(self, key: str, text: str) -> bool:
        if not os.path.isabs(text):
            raise InputError(f"{key}: {text!r} lies in a shared folder; write its absolute path, which all nodes know")
        return True

    def _place(self, path: Path) -> str:
        """Where something goes, relative to the file."""
        if path.is_relative_to(self.base):
            below = path.relative_to(self.base)
            if below.parts and below.parts[0] != _OUTSIDE:
                return below.as_posix()
        return self._outside.setdefault(path, f"{_OUTSIDE}/{len(self._outside)}/{path.name}")


def _files(ref: DataRef) -> Iterator[tuple[Path, str]]:
    """The files of a data reference, each with its place below it; hidden ones are nobody's data."""
    assert ref.path is not None
    if ref.kind == "file":
        yield ref.path, ""
        return
    for place, folders, files in os.walk(ref.path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path, path.relative_to(ref.path).as_posix()


def _zip(contents: dict[str, Path | bytes], into: Path, limit: int, progress: Progress) -> str:
    """Write a zip file, the same bytes for the same contents, and return their digest. Raises TooLarge."""
    total = sum(item.stat().st_size if isinstance(item, Path) else len(item) for item in contents.values())
    done = 0
    try:
        with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name in sorted(contents):
                item = contents[name]
                entry = zipfile.ZipInfo(name, _ZIP_TIME)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with archive.open(entry, "w", force_zip64=True) as target:
                    for part in _parts(item):
                        target.write(part)
                        done += len(part)
                        progress("pack", done, max(total, done))
                        if into.stat().st_size > limit:
                            raise _too_large(contents, limit)
        if into.stat().st_size > limit:
            raise _too_large(contents, limit)
        with into.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError as error:
        raise RunFailed(f"{error.filename or into}: cannot be packed: {error.strerror or error}") from None


def _parts(item: Path | bytes) -> Iterator[bytes]:
    if isinstance(item, bytes):
        yield item
        return
    with item.open("rb") as stream:
        while part := stream.read(_CHUNK):
            yield part


def _too_large(contents: dict[str, Path | bytes], limit: int) -> TooLarge:
    sizes = {name: item.stat().st_size for name, item in contents.items() if isinstance(item, Path)}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return TooLarge(
        f"what the file names is larger than the {limit / 2**20:g} MiB that a cluster takes ({len(sizes)} files, "
        f"{sum(sizes.values()) / 2**20:.0f} MiB before packing, the largest {contents.get(largest, '')}). Put it on "
        "storage that the cluster's nodes share and name that folder under `shared` of the cluster in cluster.yaml, or "
        "name it as hf://, a Hub id or models:/name@alias"
    )


class _Dumper(yaml.SafeDumper):
    """YAML that reads the same by 1.1 and 1.2: every text is quoted."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
