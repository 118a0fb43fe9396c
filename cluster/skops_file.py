"""scikit-learn estimators on disk, as skops files: data and names of types, never pickle.

A file may come from anyone, so only types of scikit-learn, NumPy and SciPy that hold numbers or estimators are built.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from cluster.errors import InputError
from cluster.imports import missing

# On top of what skops trusts by itself (the public estimators, arrays, ufuncs). Classes only: a function named in a
# file would be called with arguments that the file chooses.
_PACKAGES = ("sklearn.", "numpy.random.", "scipy.sparse.", "scipy.interpolate.")
_NAMES = {"numpy.dtype"}
_NEVER = ("sklearn.externals.", "sklearn.datasets.", "sklearn.utils.", "sklearn.tests.", "sklearn.conftest")
# A stored model hardly packs; a bomb packs a thousandfold.
_MAX_RATIO = 50
_MAX_FREE_BYTES = 256 * 2**20

# Where scikit-learn speaks to torch, for arrays of torch's.
_BRIDGE = "sklearn.externals.array_api_compat.torch"


def load_skops(path: Path) -> Any:
    """The object in a skops file. Raises InputError where the file is missing, is none, is a zip bomb, or names a type
    outside scikit-learn, NumPy and SciPy."""
    skops = _skops()
    if not path.is_file():
        raise InputError(f"{path}: no such file; a tabular model's folder holds model.skops")
    try:
        with ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max(_MAX_FREE_BYTES, _MAX_RATIO * path.stat().st_size):
            raise InputError(f"{path}: unpacks to {size} bytes from {path.stat().st_size}; refused as a zip bomb")
        strange = skops.get_untrusted_types(file=path)
        if refused := [name for name in strange if not _harmless(name)]:
            raise InputError(
                f"{path}: holds {', '.join(refused)}; only types of scikit-learn, NumPy and SciPy are loaded"
            )
        return skops.load(path, trusted=list(strange))
    except InputError:
        raise
    except BadZipFile:
        raise InputError(f"{path}: not a skops file, or cut short; save the estimator with skops, not pickle") from None
    except Exception as error:
        # The bytes are other people's: skops raises whatever the broken schema happens to trip over.
        raise InputError(f"{path}: cannot be read as a skops file: {type(error).__name__}: {error}") from None


def dump_skops(obj: Any, path: Path) -> None:
    """Save an estimator so that `load_skops` reads it back. Raises InputError, naming the type, where it would not."""
    skops = _skops()
    data = skops.dumps(obj)
    if refused := [name for name in skops.get_untrusted_types(data=data) if not _harmless(name)]:
        raise InputError(f"{', '.join(refused)}: only types of scikit-learn, NumPy and SciPy can be saved")
    path.write_bytes(data)


def _skops() -> Any:
    """skops.io. To know scikit-learn's estimators it imports all of scikit-learn, and torch with that: 2 seconds and
    200 MB in every copy of a model of tables. scikit-learn's search takes it in good part that one is missing."""
    with missing(_BRIDGE):
        return importlib.import_module("skops.io")


def _harmless(name: str) -> bool:
    if name in _NAMES:
        return True
    if not name.startswith(_PACKAGES) or name.startswith(_NEVER):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute), type)
    except (ImportError, AttributeError):
        return False
