"""The network card that workers speak by."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from train import network


def test_the_card_is_that_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch):
    assert psutil.net_if_addrs()[network.card_of("127.0.0.1")][0].address == "127.0.0.1"
    assert network.card_of("192.0.2.1") == ""  # of no card: an address for documents
    for address, before, after in (
        ("127.0.0.1", None, network.card_of("127.0.0.1")),
        ("127.0.0.1", "eth7", "eth7"),
        ("192.0.2.1", None, None),
    ):
        monkeypatch.setattr("ray.util.get_node_ip_address", lambda address=address: address)
        monkeypatch.delenv(network.VARIABLE, raising=False)
        if before:
            monkeypatch.setenv(network.VARIABLE, before)
        network.choose()
        assert os.environ.get(network.VARIABLE) == after


def test_the_process_group_is_rays_own_behind_it(monkeypatch: pytest.MonkeyPatch):
    """What Ray's backend of torch is and does, ours is and hands on: a new method or mark of Ray's fails here."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    ours, rays = network.Torch().backend_cls, TorchConfig().backend_cls
    marks = [name for name in vars(Backend) if isinstance(getattr(Backend, name), bool)]
    assert {name: getattr(ours, name) for name in marks} == {name: getattr(rays, name) for name in marks}
    told = {name for name in vars(rays) if name.startswith("on_")}
    assert told == {name for name in vars(ours) if name.startswith("on_")}

    class Group:
        """Notes what workers are asked for."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def __len__(self) -> int:
            return 2

        def execute(self, function, *_, **__):
            self.asked.append(function.__name__)

        def execute_async(self, function, **options):
            self.asked.append(f"{function.__name__} {options}")
            return []

    monkeypatch.setattr("ray.get", lambda found, **_: found)  # it would start a Ray
    group = Group()
    ours().on_shutdown(group, network.Torch())
    assert group.asked == ["_shutdown_torch {'destroy_process_group': True}"]


def test_a_driver_needs_no_torch():
    """Nor does the controller, where there is nothing to connect: two seconds, and 150 MB, of every command."""
    program = (
        "import sys; from train import launch, network; network.Torch().backend_cls(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
