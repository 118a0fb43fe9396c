"""What a sweep adds to a plan."""

from __future__ import annotations

from cluster.spec import Spec


def lines(spec: Spec, *, steps: int | None) -> list[str]:
    """One line for a file with a `tune` section, none for others; `steps` are those of one training run."""
    tune = spec.tune
    if not tune.space or spec.data.train is None:
        return []
    each = f" of {steps:,} steps (with the file's own values)" if steps is not None else ""
    keys = ", ".join(key.removeprefix("train.") for key in tune.space)
    early = "; asha ends those early that fall behind" if tune.scheduler == "asha" else ""
    return [f"tune     {tune.trials} trials{each} over {keys}, by `shoal tune` alone{early}"]
