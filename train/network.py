"""Which network card workers on several hosts speak to each other by: the one of their node's address in Ray.

Gloo takes the card that the host's own name leads to. On Debian, and in many containers, that is the loopback
(127.0.1.1 in /etc/hosts): one host alone is well with it, and on several no worker finds another.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

# The name of gloo's own; who sets it for the cluster's nodes decides.
VARIABLE = "GLOO_SOCKET_IFNAME"


class Torch(TorchConfig):
    """Ray's process group of torch, by the cards that Ray's own addresses belong to."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


# Ray's own by way of its public configuration: the class has no public name.
class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose)
        super().on_start(worker_group, backend_config)


def choose() -> None:
    """In a worker, before there is a process group: name the card of this node to gloo, unless one is named."""
    if card := card_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(VARIABLE, card)


def card_of(address: str) -> str:
    """The network card with this address; empty where none has it, as behind a translated one."""
    cards = psutil.net_if_addrs().items()
    return next((card for card, found in cards if any(each.address == address for each in found)), "")
