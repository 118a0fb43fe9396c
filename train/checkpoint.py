"""A training checkpoint: a folder that is either whole or known not to be.

model.safetensors, optimizer.pt (tensors only; nothing in it is run when it is loaded) and state.json, which is written
last and holds the SHA-256 of the other two.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from cluster.errors import RunFailed

_FILES = ("model.safetensors", "optimizer.pt")


def save(folder: Path, model: torch.nn.Module, optimizer: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint. `optimizer` is a dict of state dicts, `state` plain JSON. Raises RunFailed on a full disk."""
    try:
        folder.mkdir(parents=True)
        save_model(model, str(folder / "model.safetensors"))
        torch.save(optimizer, folder / "optimizer.pt")
        digests = {name: _sha256(folder / name) for name in _FILES}
        (folder / "state.json").write_text(json.dumps({**state, "sha256": digests}))
    except Exception as error:
        # Each library has its own exception for a full disk: ask the disk.
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        free = shutil.disk_usage(folder.parent).free
        shutil.rmtree(folder, ignore_errors=True)
        if free < 4 * size:
            raise RunFailed(
                f"disk full: a checkpoint takes about {3 * size >> 20} MiB and {free >> 20} are left in "
                f"{folder.parent}; make room, or set SHOAL_HOME to a larger disk, and run the same again: it goes on "
                "from the last checkpoint"
            ) from error
        raise


def read(folder: Path) -> dict[str, Any] | None:
    """The state of a whole checkpoint; None where a file is missing, cut short or altered."""
    try:
        state = json.loads((folder / "state.json").read_text())
        whole = all(_sha256(folder / name) == state["sha256"][name] for name in _FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if whole else None


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put a checkpoint's weights into `model`, every one of them."""
    load_model(model, folder / "model.safetensors", strict=True)


def load_optimizer(folder: Path, device: str) -> dict[str, Any]:
    """The dict of state dicts that was saved, its tensors on `device`."""
    return torch.load(folder / "optimizer.pt", map_location=device, weights_only=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
