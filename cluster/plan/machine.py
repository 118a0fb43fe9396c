"""What this machine has to give."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster.settings import home, settings


@dataclass(frozen=True)
class Machine:
    """Cores this process may use, memory free to take and disk free under $SHOAL_HOME (bytes), GPUs, and the cores
    that Ray hands out (`ray.num_cpus` of cluster.yaml)."""

    cores: int
    memory: int
    free_disk: int
    gpus: int
    slots: int


def here() -> Machine:
    """This machine as it is now; a container's own limits count."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        memory = min(memory, max(0, limit - used))
    return Machine(cores, memory, shutil.disk_usage(home()).free, _gpus(), settings().ray.num_cpus or 4 * cores)


def _number(file: str) -> int | None:
    try:
        text = Path(file).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _gpus() -> int:
    """NVIDIA devices that programs started here may see, without asking a driver."""
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(devices)
    return min(len(devices), len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
