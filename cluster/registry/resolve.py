"""From a reference in a model's file to a folder on this machine."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

from cluster import weights as files
from cluster.errors import InputError, RunFailed
from cluster.progress import Progress, silent
from cluster.registry.versions import Registry
from cluster.spec.refs import ModelRef, model_ref

# Other formats of the same weights, which some repositories hold too.
_IGNORED = ["onnx/*", "openvino/*", "original/*", "consolidated*"]


def resolve(
    reference: ModelRef | str,
    registry: Registry | None = None,
    *,
    weights: bool = True,
    progress: Progress = silent,
) -> Path:
    """The folder of a local, registry or Hub model; a Hub model is downloaded first, without any pickle.

    weights=False takes configuration and tokenizer alone, for a model that starts from random weights.
    Raises InputError (NotFound for the registry) with what to do, RunFailed where the disk is full.
    """
    ref = model_ref(reference, base=Path.cwd()) if isinstance(reference, str) else reference
    if ref.kind == "estimator":
        raise InputError(f"model: {ref.text} is a scikit-learn estimator, not a folder of weights")
    if ref.kind == "registry":
        return (registry or Registry()).version(ref.name, alias=ref.alias, version=ref.version).folder
    if ref.kind == "local":
        assert ref.path is not None
        _check(ref.path, weights)
        return ref.path
    folder = _download(ref, weights, progress)
    try:
        _check(folder, weights)
    except InputError as error:
        if any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
            raise
        raise InputError(
            f"model: {ref.text} has no safetensors weights on the Hub, and pickles are never loaded; "
            "https://huggingface.co/spaces/safetensors/convert adds them"
        ) from error
    return folder


def _check(folder: Path, weights: bool) -> None:
    # A tabular model holds its estimator in model.skops, which has a reader and checks of its own.
    if not weights or (folder / "model.skops").is_file():
        files.read_config(folder)
    else:
        files.inspect(folder)


def _download(ref: ModelRef, weights: bool, progress: Progress) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in files.PATTERNS if weights or pattern != "*.safetensors"]
    page = f"https://huggingface.co/{ref.name}"
    folder = f"or give a local folder (model: ./{ref.name.rpartition('/')[2]})"
    try:
        return Path(
            snapshot_download(
                ref.name,
                revision=ref.revision,
                allow_patterns=patterns,
                ignore_patterns=_IGNORED,
                tqdm_class=_bar(progress),
            )
        )
    except hub.GatedRepoError:
        why = f"is gated; ask for access at {page}, then set HF_TOKEN to your token"
    except hub.RevisionNotFoundError:
        why = f"has no revision {ref.revision!r}; {page}/commits lists them"
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        why = f"is not on the Hub, or is private; check the name at {page}, set HF_TOKEN if it is yours, {folder}"
    except (OSError, hub.HfHubHTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise RunFailed(f"model: {ref.text}: no space left on the disk to fetch it; free some, {folder}") from None
        # The Hub's answer, where there was one: it may stand behind "not in the cache either".
        answer = getattr(error if isinstance(error, hub.HfHubHTTPError) else error.__cause__, "response", None)
        if answer is not None and answer.status_code in (401, 403):
            why = f"is refused by the Hub ({answer.status_code}); set HF_TOKEN to a token that may read it, {folder}"
        elif answer is not None:
            why = f"cannot be fetched: the Hub answers {answer.status_code}; try again later, {folder}"
        elif isinstance(error, hub.LocalEntryNotFoundError):
            why = f"cannot be fetched: the Hub is not reachable and it is not in the cache; go online once, {folder}"
        else:
            why = f"cannot be fetched: {(str(error).splitlines() or ['no reason given'])[0][:200]}; try again, {folder}"
    raise InputError(f"model: {ref.text} {why}")


def _bar(progress: Progress) -> Any:
    """The class of bars that huggingface_hub makes, telling `progress` of bytes and drawing nothing."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            # There are three: bytes received, files, and bytes on the disk, which is what counts.
            if self.total and (self.desc or "").startswith("Reconstruct"):
                progress("download", min(self.n, self.total), self.total)

    return Bar
