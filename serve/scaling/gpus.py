"""How busy the GPUs are that Ray gave this replica, as NVIDIA's own library (NVML) has it.

Its number is of a device: the share of the last sixth of a second to second in which any kernel ran there, whosever.
So copies that share a GPU each tell of all of it. Of an instance of a GPU in MIG mode NVML has no such number, and of
other makers' GPUs it knows nothing: then it is told why nothing is known.

The bindings are NVIDIA's nvidia-ml-py, in the copy that Ray counts a node's GPUs with: where Ray runs they are there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from cluster.errors import RunFailed

log = logging.getLogger("ray.serve")
EVERY_S = 1.0  # as often as a replica tells; NVML has nothing newer
RETRY_S = 10.0
FRESH_S = 5.0  # an older number says nothing of now


class Gpus:
    """Those of one replica. A thread of their own asks, for a driver that hangs must hold up nothing else; `told` is
    what was heard last."""

    def __init__(self, ids: Iterable[str]) -> None:
        """`ids` as Ray gives them: what stands in CUDA_VISIBLE_DEVICES, numbers or UUIDs. None: there is nothing to
        tell, and no thread."""
        self._ids = sorted(ids)
        self._heard = -math.inf  # monotonic seconds
        self._share = 0.0
        self._trouble = ""
        self._ended = threading.Event()

    def open(self) -> None:
        """Begin to ask."""
        if self._ids:
            self._heard = time.monotonic()
            self._trouble = "NVML has not answered yet"
            threading.Thread(target=self._follow, name="shoal-gpus", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def told(self) -> dict[str, Any]:
        """{gpu: a share of 1, on average of the devices}, or {gpu_trouble: why it is not known}; {} without a GPU.
        Returns at once."""
        if not self._ids:
            return {}
        if self._trouble:
            return {"gpu_trouble": self._trouble}
        if (silent_s := time.monotonic() - self._heard) > FRESH_S:
            return {"gpu_trouble": f"NVML has not answered for {silent_s:.0f} s"}
        return {"gpu": self._share}

    def _follow(self) -> None:
        """As long as the replica lives."""
        nvml: Any = None
        devices: dict[str, Any] = {}
        while not self._ended.is_set():
            trouble = ""
            try:
                if nvml is None:
                    nvml = _opened()
                    devices = _find(nvml, self._ids)
                self._share = sum(_busy(nvml, one, device) for one, device in devices.items()) / len(devices)
            except Exception as error:
                trouble = (
                    error.message if isinstance(error, RunFailed) else f"NVML: {str(error) or type(error).__name__}"
                )
                if nvml is not None:  # the driver may be another one when it is back
                    with contextlib.suppress(Exception):
                        nvml.nvmlShutdown()
                    nvml = None
                if trouble != self._trouble:
                    log.warning("how busy the GPU is, serve.autoscale.metric: gpu cannot know: %s", trouble)
            self._heard, self._trouble = time.monotonic(), trouble
            self._ended.wait(RETRY_S if trouble else EVERY_S)


def _opened() -> Any:
    """The bindings, with the library open. Raises RunFailed where one of both is not there, NVMLError."""
    try:
        from ray._private.thirdparty.pynvml import pynvml as bindings
    except ImportError as error:
        raise RunFailed(f"NVML's bindings cannot be imported: {error}") from None
    nvml: Any = bindings
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise
        raise RunFailed(
            "libnvidia-ml.so.1 of NVIDIA's driver is not here; a container has it where NVIDIA_DRIVER_CAPABILITIES "
            "names utility"
        ) from None
    return nvml


def _find(nvml: Any, ids: list[str]) -> dict[str, Any]:
    """NVML's handles by id. Raises RunFailed where an id names none for sure, NVMLError."""
    every: dict[int, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(nvml.NVMLError):  # one that is lost, and nobody's here
            every[index] = nvml.nvmlDeviceGetHandleByIndex(index)
    found = {}
    for one in ids:
        if one.startswith("MIG-"):
            raise RunFailed(f"{one} is an instance of a GPU in MIG mode, of which NVML tells no use")
        if one.isdecimal():
            _same_count(nvml, one, list(every.values()))
            fitting = [device for index, device in every.items() if index == int(one)]
        else:
            # CUDA takes the beginning of a UUID for all of it.
            fitting = [device for device in every.values() if _text(nvml.nvmlDeviceGetUUID(device)).startswith(one)]
        if len(fitting) != 1:
            raise RunFailed(f"GPU {one}: NVML has {len(fitting)} of this name among {len(every)}")
        found[one] = fitting[0]
    return found


def _same_count(nvml: Any, one: str, every: list[Any]) -> None:
    """Raise RunFailed where number `one` may be another GPU to CUDA: that counts the fastest first, unless it is told
    to count as NVML does, by the place on the bus."""
    if (
        os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
        and len({nvml.nvmlDeviceGetName(each) for each in every}) > 1
    ):
        raise RunFailed(
            f"GPU {one}: the GPUs of this node are unlike, and CUDA may count them otherwise than NVML; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID on the node"
        )


def _busy(nvml: Any, one: str, device: Any) -> float:
    try:
        return nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        raise RunFailed(f"GPU {one}: NVML tells no use of it, as of all in MIG mode") from None


def _text(word: str | bytes) -> str:
    return word.decode() if isinstance(word, bytes) else word
