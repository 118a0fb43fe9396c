"""What this machine has to give."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.settings import home, settings


@dataclass(frozen=True)
class Machine:
    """Cores this process may use, memory free to take and disk free under $SHOAL_HOME (bytes), GPUs, the cores that Ray
    hands out (`ray.num_cpus` of cluster.yaml), all memory, free or not, and that of the smallest GPU (bytes; None: not
    known)."""

    cores: int
    memory: int
    free_disk: int
    gpus: int
    slots: int
    memory_all: int | None = None
    memory_gpu: int | None = None


def here() -> Machine:
    """This machine as it is now; a container's own limits count."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory, whole = psutil.virtual_memory().available, psutil.virtual_memory().total
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        memory, whole = min(memory, max(0, limit - used)), min(whole, limit)
    gpus, slots = _gpus(), settings().ray.num_cpus or 4 * cores
    return Machine(cores, memory, shutil.disk_usage(home()).free, gpus, slots, whole, _gpu_memory() if gpus else None)


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


def _gpu_memory() -> int | None:
    """Bytes of the smallest GPU, by the driver's own program; None where it does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in told.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
