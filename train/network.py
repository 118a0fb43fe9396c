"""Which network card workers on several hosts speak to each other by: the one of their node's address in Ray.

Gloo takes the card that the host's own name leads to. On Debian, and in many containers, that is the loopback
(127.0.1.1 in /etc/hosts): one host alone is well with it, and on several no worker finds another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig

# The name of gloo's own; who sets it for the cluster's nodes decides.
VARIABLE = "GLOO_SOCKET_IFNAME"


class Torch(BackendConfig):
    """Ray's process group of torch, by the cards that Ray's own addresses belong to.

    Ray's own configuration, by its public name, does all of it: where it is needed, for its module imports torch, and
    the driver has two seconds of better things to do.
    """

    @property
    def backend_cls(self) -> Any:
        return _Backend

    @property
    def framework(self) -> Any:
        from ray.train.v2._internal.util import TrainingFramework

        return TrainingFramework.TORCH

    @property
    def train_func_context(self) -> Any:
        return _device


@contextlib.contextmanager
def _device() -> Iterator[None]:
    with _rays().train_func_context():
        yield


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        worker_group.execute(choose)
        _rays().backend_cls().on_start(worker_group, _rays())

    def on_training_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        _rays().backend_cls().on_training_start(worker_group, _rays())

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        _rays().backend_cls().on_shutdown(worker_group, _rays())


def _rays() -> Any:
    from ray.train.torch import TorchConfig

    return TorchConfig()


def choose() -> None:
    """In a worker, before there is a process group: name the card of this node to gloo, unless one is named."""
    if card := card_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(VARIABLE, card)


def card_of(address: str) -> str:
    """The network card with this address; empty where none has it, as behind a translated one."""
    cards = psutil.net_if_addrs().items()
    return next((card for card, found in cards if any(each.address == address for each in found)), "")
