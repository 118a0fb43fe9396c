"""A folder of pictures, one folder a class. Files stay where they are until they are written out."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pyarrow as pa

from cluster.errors import InputError
from cluster.progress import Progress, silent

# Formats whose decoders are Pillow's own: no PostScript, no external program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
ENDINGS = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_BYTES = 64 << 20
MAX_PIXELS = 89_478_485  # Pillow's own mark of a decompression bomb: 256 MiB as RGB


def list_folder(folder: Path, *, rows: int | None, where: str) -> tuple[pa.Table, int]:
    """A table `image` (absolute path, text) and `label` (name of the class's folder), in sorted order, and how many
    files were passed over because they are no pictures by their ending.

    `rows` takes that many, one from each class in turn, so that every class is there.
    Raises InputError: pictures outside of class folders, a class without pictures, no class.
    """
    classes: dict[str, list[Path]] = {}
    skipped = 0
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if not child.is_dir():
            if child.suffix.lower() in ENDINGS:
                raise InputError(f"{where}: {child.name} lies outside of any class; move it into a folder of its class")
            skipped += 1
            continue
        files = [file for file in _walk(child) if not file.name.startswith(".")]
        pictures = sorted(file for file in files if file.suffix.lower() in ENDINGS)
        skipped += len(files) - len(pictures)
        if not pictures:
            endings = " ".join(sorted(ENDINGS))
            raise InputError(f"{where}: no pictures in the class folder {child.name}; put some there ({endings})")
        classes[child.name] = pictures
    if not classes:
        raise InputError(f"{where}: no class folders in it; make one folder of pictures a class")
    pairs = [(file, name) for name, files in classes.items() for file in files]
    if rows is not None:
        pairs = sorted(_in_turn(classes, rows), key=lambda pair: (pair[1], pair[0]))
    return (
        pa.table(
            {
                "image": pa.array([str(file) for file, _ in pairs], pa.large_string()),
                "label": pa.array([name for _, name in pairs], pa.large_string()),
            }
        ),
        skipped,
    )


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in files)


def _in_turn(classes: dict[str, list[Path]], rows: int) -> list[tuple[Path, str]]:
    taken: list[tuple[Path, str]] = []
    for turn in range(max(len(files) for files in classes.values())):
        for name, files in classes.items():
            if len(taken) == rows:
                return taken
            if turn < len(files):
                taken.append((files[turn], name))
    return taken


def check(images: pa.ChunkedArray, *, where: str, progress: Progress = silent) -> list[bytes]:
    """Decode every picture once; give the sha256 of each, in order.

    `images` holds paths (text) or the pictures' bytes. Raises InputError with the file or row of one that is too
    large, no picture, or broken off in the middle.
    """
    texts = pa.types.is_large_string(images.type)
    values: Iterator[str | bytes | None] = (value.as_py() for value in images)

    def one(row: int, value: str | bytes | None) -> bytes:
        name = str(value) if texts else f"row {row}"
        if value is None:
            raise InputError(f"{where}: {name}: no picture; fill it, or leave the row out")
        data = read(Path(value), where) if isinstance(value, str) else value
        if len(data) > MAX_BYTES:
            raise InputError(f"{where}: {name}: {len(data) >> 20} MiB; a picture has {MAX_BYTES >> 20} MiB at most")
        _decode(data, f"{where}: {name}")
        return hashlib.sha256(data).digest()

    digests: list[bytes] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd metadata; what it cannot decode it raises
        for start in range(0, len(images), 64):  # in portions: at most 64 pictures are in memory at a time
            portion = list(islice(values, 64))
            digests += pool.map(one, range(start + 1, start + 1 + len(portion)), portion)
            progress("check pictures", len(digests), len(images))
    return digests


def read(path: Path, where: str) -> bytes:
    """A picture's bytes. Raises InputError where the file is gone, unreadable or over the limit."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{where}: {path}: {size >> 20} MiB; a picture has {MAX_BYTES >> 20} MiB at most")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: {path}: cannot be read: {error.strerror or error}") from None


def _decode(data: bytes, where: str) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"{where}: {width} x {height} pixels; {MAX_PIXELS} at most, make it smaller")
            image.draft("RGB", (64, 64))  # JPEG: all bytes are read, fewer pixels made
            image.load()
    except InputError:
        raise
    except Exception as error:  # a decoder that meets broken bytes raises anything
        raise InputError(f"{where}: cannot be decoded ({error}); replace or remove it") from None
