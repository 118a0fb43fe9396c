"""How busy GPUs are, read through the real bindings from a stand-in of NVML's C library: no machine here has a GPU."""

import subprocess
import sys
import threading
import time

import pytest
from ray._private.thirdparty.pynvml import pynvml

from serve.keeper import Keeper
from serve.scaling import gpus
from serve.scaling.gpus import Gpus

UUIDS = ["GPU-11112222-0000-0000-0000-000000000000", "GPU-1111aaaa-0000-0000-0000-000000000000", "GPU-3-x"]


class Library:
    """What the bindings call, as in nvml.h: arguments by reference, a status returned."""

    def __init__(self) -> None:
        self.busy = [30, 50, 100]  # per cent, by index
        self.names = [b"NVIDIA A100"] * 3
        self.status = {}  # by function: what it returns instead of success
        self.open = 0
        self.hangs = threading.Event()
        self.hangs.set()

    def __getattr__(self, function):
        def call(*arguments):
            if status := self.status.get(function):
                return status
            return getattr(self, f"_{function.removesuffix('_v2')}")(*arguments) or pynvml.NVML_SUCCESS

        if function.startswith("nvml"):
            return call
        raise AttributeError(function)

    def _nvmlInitWithFlags(self, flags):
        self.open += 1

    def _nvmlShutdown(self):
        self.open -= 1

    def _nvmlDeviceGetCount(self, count):
        count._obj.value = len(self.busy)

    def _nvmlDeviceGetHandleByIndex(self, index, device):
        if index.value >= len(self.busy):
            return pynvml.NVML_ERROR_INVALID_ARGUMENT
        # The pointer is never followed: the number of the device, from 1.
        pynvml.cast(pynvml.byref(device._obj), pynvml.POINTER(pynvml.c_void_p))[0] = index.value + 1
        return None

    def _nvmlDeviceGetName(self, device, name, length):
        name.value = self.names[number(device)]

    def _nvmlDeviceGetUUID(self, device, uuid, length):
        uuid.value = UUIDS[number(device)].encode()

    def _nvmlDeviceGetUtilizationRates(self, device, rates):
        assert self.hangs.wait(60)
        assert self.open > 0
        rates._obj.gpu = self.busy[number(device)]


def number(device) -> int:
    return int(pynvml.cast(device, pynvml.c_void_p).value or 0) - 1


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(pynvml, "nvmlLib", found)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(gpus, "EVERY_S", 0.02)
    monkeypatch.setattr(gpus, "RETRY_S", 0.02)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return found


@pytest.fixture
def follow():
    """Begins to ask, and ends with the test."""
    begun = []

    def begin(*ids):
        one = Gpus(ids)
        one.open()
        begun.append(one)
        return one

    yield begin
    for one in begun:
        one.close()
    for thread in threading.enumerate():
        if thread.name == "shoal-gpus":
            thread.join(30)


def until(gpus, right):
    end = time.monotonic() + 30
    while not right(told := gpus.told()):
        assert time.monotonic() < end, told
        time.sleep(0.01)
    return told


def trouble(gpus, words):
    return until(gpus, lambda told: words in told.get("gpu_trouble", ""))["gpu_trouble"]


@pytest.mark.parametrize(
    ("ids", "share"),
    [(["1"], 0.5), (["2", "0"], 0.65), ([UUIDS[1]], 0.5), (["GPU-11112", "GPU-3"], 0.65), (["0", UUIDS[2]], 0.65)],
)
def test_only_the_devices_that_ray_gave_are_counted(library, follow, ids, share):
    found = follow(*ids)
    assert until(found, lambda told: "gpu" in told) == {"gpu": pytest.approx(share)}
    library.busy = [0, 0, 0]
    until(found, lambda told: told == {"gpu": 0})
    assert library.open == 1, "opened once"


def test_without_a_gpu_there_is_nothing_to_tell_and_nobody_asks(library, follow):
    assert follow().told() == {}
    assert not [thread for thread in threading.enumerate() if thread.name == "shoal-gpus"]
    assert library.open == 0


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["MIG-3c1a"], "MIG-3c1a is an instance of a GPU in MIG mode, of which NVML tells no use"),
        (["GPU-1111"], "GPU GPU-1111: NVML has 2 of this name among 3"),
        (["7"], "GPU 7: NVML has 0 of this name among 3"),
    ],
)
def test_a_device_that_is_not_sure_is_not_read(library, follow, ids, words):
    assert trouble(follow(*ids), words) == words
    assert library.open in (0, 1), "each try closes what it opened"


def test_a_gpu_in_mig_mode_is_told_of(library, follow):
    library.status["nvmlDeviceGetUtilizationRates"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert trouble(follow("0"), "MIG") == "GPU 0: NVML tells no use of it, as of all in MIG mode"


def test_numbers_of_unlike_gpus_want_one_way_of_counting(library, follow, monkeypatch):
    library.names[2] = b"Quadro P400"
    trouble(follow("2"), "set CUDA_DEVICE_ORDER=PCI_BUS_ID on the node")
    assert until(follow(UUIDS[2]), lambda told: "gpu" in told) == {"gpu": 1}, "a UUID is one GPU's in any order"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert until(follow("2"), lambda told: "gpu" in told) == {"gpu": 1}


def test_a_driver_that_goes_and_comes_back_is_asked_again(library, follow, caplog):
    caplog.set_level("WARNING", logger="ray.serve")
    found = follow("0")
    until(found, lambda told: "gpu" in told)
    library.status["nvmlDeviceGetUtilizationRates"] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert trouble(found, "lost") == "NVML: GPU is lost"
    library.status.clear()
    until(found, lambda told: told == {"gpu": 0.3})
    assert library.open == 1
    (line,) = [record.getMessage() for record in caplog.records if "GPU is lost" in record.getMessage()]
    assert "serve.autoscale.metric: gpu" in line, "once, however often it was tried"


def test_a_driver_that_hangs_holds_up_nobody(library, follow, monkeypatch):
    found = follow("0")
    until(found, lambda told: "gpu" in told)
    library.hangs.clear()
    monkeypatch.setattr(gpus, "FRESH_S", 0.2)
    trouble(found, "NVML has not answered for")
    library.hangs.set()
    until(found, lambda told: "gpu" in told)


def test_a_library_that_is_not_there_is_named(monkeypatch, follow):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert "NVIDIA_DRIVER_CAPABILITIES names utility" in trouble(follow("0"), "libnvidia-ml.so.1")


def test_bindings_that_cannot_be_imported_are_named(monkeypatch, follow):
    monkeypatch.setitem(sys.modules, "ray._private.thirdparty.pynvml", None)
    trouble(follow("0"), "NVML's bindings cannot be imported")


def test_the_keeper_says_why_a_number_stays_as_it_is():
    import asyncio

    told = {"metric": "gpu", "target": 0.7, "num_cpus": 1, "schedule": [], "min_replicas": 1, "max_replicas": 3}
    told |= {"upscale_delay_s": 0, "downscale_delay_s": 60, "idle_s": 60}
    said = {"id": "r", "application": "a", "version": "1", "address": "", "node": "n", "started": 0.0}

    async def story():
        known = Keeper(is_up=lambda node: True)
        asked = {"a": {"keys": told, "version": "1", "target": 1, "running": 1}}

        async def shown(facts, right):
            async with asyncio.timeout(30):
                while True:
                    await known.hello(said, facts)
                    await known.scale(asked, {"a": -1})
                    if right(found := (await known.state())["scaling"]["a"]):
                        return found
                    await asyncio.sleep(0.1)

        found = await shown({"gpu_trouble": "no library"}, lambda found: found["trouble"])
        assert (found["wanted"], found["trouble"]) == (1, "no library")
        found = await shown({"gpu": 1.0}, lambda found: found["wanted"] > 1)
        assert found["trouble"] == ""
        assert found["why"] == "100% of gpu used by 1, 70% is aimed at"
        assert known.ticking is not None
        known.ticking.cancel()

    asyncio.run(story())


def test_reading_imports_no_torch():
    code = (
        "import sys; from serve.scaling.gpus import Gpus; one = Gpus(['0']); one.open()\n"
        "import time; end = time.monotonic() + 60\n"
        "while 'yet' in one.told()['gpu_trouble'] and time.monotonic() < end: time.sleep(0.1)\n"
        "print(one.told()); sys.exit('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "libnvidia-ml.so.1" in answer.stdout or "'gpu':" in answer.stdout
