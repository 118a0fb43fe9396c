"""Model folders as anyone may hand them in: good, cut short, forged, or pickled."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.weights import Weights, digest, inspect


def tensor_file(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], 0, 24),
        "b": entry("I64", [1], 24, 32),
        "scalar": entry("F32", [], 32, 36),
    }
    tensor_file(tmp_path / "model.safetensors", header, bytes(36))
    return tmp_path


def test_parameters_bytes_and_type_are_counted(folder: Path) -> None:
    assert inspect(folder) == Weights(parameters=8, bytes=36, dtype="float32", files=("model.safetensors",))


def test_a_file_of_the_real_library_is_read(tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    tensors = {"x": numpy.ones((5, 7), "float16"), "y": numpy.zeros(3, "float32"), "z": numpy.zeros((0, 4), "int8")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    assert inspect(tmp_path) == Weights(38, 35 * 2 + 12, "float16", ("model.safetensors",))


def test_shards_are_added_up(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tensor_file(folder / "one.safetensors", {"a": entry("F16", [4], 0, 8)}, bytes(8))
    tensor_file(folder / "two.safetensors", {"b": entry("F16", [2], 0, 4)}, bytes(4))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert inspect(folder) == Weights(6, 12, "float16", ("one.safetensors", "two.safetensors"))

    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(InputError, match=r"b should lie in one.safetensors"):
        inspect(folder)
    index.write_text(json.dumps({"weight_map": {"a": "three.safetensors"}}))
    with pytest.raises(InputError, match=r"three.safetensors is missing"):
        inspect(folder)
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(InputError, match="no weight_map"):
        inspect(folder)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/out.safetensors", "sub/x.safetensors", "a\0.safetensors"])
def test_an_index_may_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="refused"):
        inspect(folder)


def test_links_into_a_cache_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = tmp_path_factory.mktemp("blobs") / "0123"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert inspect(folder).parameters == 8
    blob.unlink()
    with pytest.raises(InputError, match="no weights in it"):
        inspect(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw[:-1], "1 of its 36 bytes of tensors are missing"),
        (lambda raw: raw + b"x", "1 bytes too many"),
        (lambda raw: raw[:40], "cut short within its header"),
        (lambda raw: raw[:5], "5 bytes, too few"),
        (lambda raw: b"", "0 bytes, too few"),
        (lambda raw: b"\xff" * 8 + raw[8:], "its header claims"),
        (lambda raw: raw[:8] + b"\x80" + raw[9:], "its header is no JSON"),
        (lambda raw: b"\x80\x04\x95" + raw, "its header claims"),
    ],
)
def test_a_spoiled_file_is_told_of(folder: Path, spoil: Any, message: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        inspect(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [2], 0, 4)},  # the shape wants 8
        {"a": entry("F99", [1], 0, 4)},
        {"a": {**entry("F32", [1], 0, 4), "dtype": ["F32"]}},
        {"a": entry("F32", [-1], 0, 4)},
        {"a": entry("F32", [True], 0, 4)},
        {"a": {**entry("F32", [1], 0, 4), "data_offsets": [0]}},
        {"a": {**entry("F32", [1], 0, 4), "data_offsets": [0.0, 4.0]}},
        {"a": entry("F32", [1], -4, 0)},
        {"a": entry("F32", [1], 4, 0)},
        {"a": entry("F32", [10**400] * 1000, 0, 4)},
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)},  # overlap
        {"a": entry("F32", [1], 4, 8)},  # a hole
        {"a": [1, 2]},
        [1],
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"\xff\xfe{}",
        b"{" + b'"a":' + b"9" * 10_000 + b"}",
    ],
)
def test_forged_headers_are_refused(folder: Path, header: Any) -> None:
    tensor_file(folder / "model.safetensors", header, bytes(4))
    with pytest.raises(InputError, match="not a whole safetensors file"):
        inspect(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    ran = folder / "ran"
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\).*convert to safetensors"):
        inspect(folder)
    assert not ran.exists()


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        inspect(folder / "none")
    with pytest.raises(InputError, match=r"config.json: a file; name a model folder"):
        inspect(folder / "config.json")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"x")  # no weights, though a pickle
    with pytest.raises(InputError, match="no weights in it"):
        inspect(folder)
    os.mkfifo(folder / "model.safetensors")  # reading it would never end
    with pytest.raises(InputError, match="no weights in it"):
        inspect(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config.json: not a JSON object"):
        inspect(folder)
    (folder / "config.json").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        inspect(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config.json in it"):
        inspect(folder)


def test_the_digest_is_of_the_model_and_of_nothing_else(folder: Path) -> None:
    before = digest(folder)
    assert len(before) == 64
    (folder / "README.md").write_text("read me")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    assert digest(folder) == before

    seen: list[float] = []
    digest(folder, lambda stage, done, total, note="": seen.append(done / total))
    assert seen[-1] == 1.0

    for name, content in (("tokenizer.json", b"[]"), ("merges.txt", b"a b"), ("model.safetensors", b"x")):
        (folder / name).write_bytes(content)
        after = digest(folder)
        assert after != before
        before = after
    (folder / "merges.txt").rename(folder / "vocab.txt")
    assert digest(folder) != before
