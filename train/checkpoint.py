"""A training checkpoint: a folder that is either whole or known not to be.

model.safetensors, optimizer.pt (tensors only; nothing in it is run when it is loaded), where workers hold shares the
same of each further one (model-1.safetensors, ...), and state.json, which is written last and holds the SHA-256 of
all others. Only what learns is stored: where most weights are frozen they are the base model's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster.errors import RunFailed
from train.parallel import everyone


def buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model stores besides its parameters, such as the running means of a normalisation."""
    stored = model.state_dict().keys()
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name in stored}


def learned(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that learn, each once though it may be used twice, and the buffers."""
    learning = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: tensor.contiguous() for name, tensor in (learning | buffers(model)).items()}


def put(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Put back what `learned` gave, every one of them."""
    copy(weights, learned_places(model))


def learned_places(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | buffers(model)


@torch.no_grad()
def copy(weights: dict[str, torch.Tensor], places: dict[str, torch.Tensor]) -> None:
    """Copy tensors into those of the same names; one that is flat takes the shape of its place."""
    if weights.keys() != places.keys():
        raise RunFailed(
            f"the checkpoint is of another model: {sorted(weights.keys() ^ places.keys())[:3]} do not match"
        )
    for name, place in places.items():
        place.copy_(weights[name].view(place.shape))


def save(
    folder: Path,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    *,
    rank: int = 0,
    workers: int = 1,
) -> None:
    """Write a worker's part of a checkpoint; all workers call it together, with what is theirs. `optimizer` is a dict
    of state dicts, `state` plain JSON. Raises RunFailed on a full disk, on every worker."""
    model_file, optimizer_file = _names(rank)
    digests: dict[str, str] = {}
    fault: Exception | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if weights:
            save_file(weights, folder / model_file)
            digests[model_file] = _sha256(folder / model_file)
        if optimizer:
            torch.save(optimizer, folder / optimizer_file)
            digests[optimizer_file] = _sha256(folder / optimizer_file)
    except Exception as error:
        fault = _explained(error, folder, weights)
    # Whether one worker or all of them: nobody waits for somebody who is gone.
    told = everyone((digests, str(fault) if fault else ""), workers)
    if fault is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise fault
    for worker, (_, problem) in enumerate(told):
        if problem:
            raise RunFailed(f"worker {worker}: {problem}")
    if rank == 0:
        whole = {name: digest for digests, _ in told for name, digest in digests.items()}
        (folder / "state.json").write_text(json.dumps({**state, "sha256": whole}))


def _explained(error: Exception, folder: Path, weights: dict[str, torch.Tensor]) -> Exception:
    # Each library has its own exception for a full disk: ask the disk.
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    free = shutil.disk_usage(folder.parent).free
    if free >= 4 * size:
        return error
    explained = RunFailed(
        f"disk full: a checkpoint takes about {3 * size >> 20} MiB and {free >> 20} are left in "
        f"{folder.parent}; make room, or set SHOAL_HOME to a larger disk, and run the same again: it goes on "
        "from the last checkpoint"
    )
    explained.__cause__ = error
    return explained


def newest(folders: Sequence[Path], *, rank: int, workers: int) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, its state, and a warning for each that is not. All workers call it
    together; each reads its part of the files, and all come to the same end."""
    warnings = []
    for folder in sorted(folders, key=lambda folder: folder.name, reverse=True):
        found = read(folder, part=(rank, workers))
        if all(everyone(found is not None, workers)):
            return folder, found or {}, warnings
        warnings.append(f"checkpoint {folder.name} is damaged; trying the one before it")
    if folders:
        warnings.append("no checkpoint is whole; starting again from the first step")
    return None, {}, warnings


def read(folder: Path, *, part: tuple[int, int] = (0, 1)) -> dict[str, Any] | None:
    """The state of a whole checkpoint; None where a file is missing, cut short or altered. `part` (i, n): only every
    nth file from the ith is looked at."""
    try:
        state = json.loads((folder / "state.json").read_text())
        digests = sorted(state["sha256"].items())
        whole = set(_names(0)) <= {name for name, _ in digests}
        whole = whole and all(_sha256(folder / name) == digest for name, digest in digests[part[0] :: part[1]])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return state if whole else None


def load(folder: Path, device: str, *, rank: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What worker `rank` stored of weights and optimizer, on `device`; what it left to worker 0, of worker 0."""
    own = folder / _names(rank)[0]
    weights = load_file(own, device) if own.exists() else {}
    with safe_open(folder / _names(0)[0], "pt", device=device) as first:
        weights |= {name: first.get_tensor(name) for name in first.keys() if name not in weights}  # noqa: SIM118
    return weights, load_optimizer(folder, device, rank=rank)


def load_optimizer(folder: Path, device: str, *, rank: int = 0) -> dict[str, Any]:
    """The dict of state dicts that was saved, its tensors on `device`."""
    own = folder / _names(rank)[1]
    return torch.load(own if own.exists() else folder / _names(0)[1], map_location=device, weights_only=True)


def join(folder: Path, model: torch.nn.Module) -> None:
    """Put a checkpoint's weights, all workers' shares, into a whole model in the host's memory.

    A share is a run of a parameter's elements as they lie flat, the last one filled up, so shares are joined end to
    end; what only worker 0 stored is whole.
    """
    files = [folder / "model.safetensors", *sorted(folder.glob("model-*.safetensors"), key=_rank)]
    parts: dict[str, list[torch.Tensor]] = {}
    for file in files:
        for name, tensor in load_file(file).items():
            parts.setdefault(name, []).append(tensor.flatten())
    places = learned_places(model)
    weights = {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in parts.items()}
    copy({name: w[: places[name].numel()] if name in places else w for name, w in weights.items()}, places)


def _names(rank: int) -> tuple[str, str]:
    return ("model.safetensors", "optimizer.pt") if rank == 0 else (f"model-{rank}.safetensors", f"optimizer-{rank}.pt")


def _rank(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
