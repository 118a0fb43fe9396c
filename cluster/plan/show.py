"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.plan import Plan


def lines_of(plan: Plan) -> list[str]:
    """A line a subject: what stands in each is said in words, sizes in binary units."""
    lines = [f"plan     {plan.name} ({plan.task}): {', '.join(plan.stages)}"]
    size = f"{plan.parameters:,} parameters" if plan.parameters is not None else "size not known yet"
    stored = f", {binary(plan.model_bytes)} on disk" if plan.model_bytes is not None else ""
    lines.append(
        f"model    {plan.model} ({plan.model_kind}): {'learned by fitting' if _fitted(plan) else size + stored}"
    )
    if plan.rows:
        rows = ", ".join(f"{name} {_rows(number)}" for name, number in plan.rows.items())
        lines.append(
            f"data     {rows}; {binary(plan.data_bytes) if plan.data_bytes is not None else 'size not known yet'}"
        )
    if plan.steps is not None:
        passes = (
            f"{plan.workers} worker{'s' if plan.workers > 1 else ''}, {plan.rows_per_pass} rows a forward pass each"
        )
        lines.append(f"steps    {plan.steps:,} in all, {plan.steps_per_epoch:,} an epoch; {passes}")
    if plan.parallel is not None:
        few = plan.learning is not None and plan.learning != plan.parameters
        learns = f"; about {plan.learning:,} parameters learn" if few else ""
        lines.append(f"shared   {plan.parallel} ({plan.parallel_why}){learns}")
    if plan.memory_worker and plan.memory_training is not None:
        parts = ", ".join(f"{name} {binary(size)}" for name, size in plan.memory_worker.items())
        lines.append(
            f"memory   about {binary(plan.memory_training)} of {binary(plan.memory_free)} free; a worker: {parts}"
        )
    if plan.disk is not None:
        lines.append(f"disk     about {binary(plan.disk)} of {binary(plan.disk_free)} free")
    if plan.metrics and plan.rows:
        gate = (
            "; must reach " + ", ".join(f"{name} {least:g}" for name, least in plan.gate.items()) if plan.gate else ""
        )
        lines.append(f"judged   by {', '.join(plan.metrics)}{gate}")
    if "serve" in plan.stages:
        each = f", about {binary(plan.memory_replica)} each" if plan.memory_replica is not None else ""
        lines.append(f"serve    {plan.replicas[0]} to {plan.replicas[1]} replicas{each}")
    verdict = {True: "yes", False: "no", None: "not known yet"}[plan.fits]
    lines.append(f"fits     {verdict} (estimate; {plan.cores} cores, {binary(plan.memory_free)} memory free)")
    lines += [f"note     {note}" for note in plan.notes]
    lines += [f"warning  {warning}" for warning in plan.warnings]
    return lines


def binary(size: int) -> str:
    """Bytes as a person reads them: 5.2 GiB."""
    number, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.1f} {units[0]}" if units[0] != "bytes" else f"{size} bytes"


def _fitted(plan: Plan) -> bool:
    return plan.model_kind == "estimator"


def _rows(number: int | None) -> str:
    return f"{number:,} rows" if number is not None else "rows not known yet"
