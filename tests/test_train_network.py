"""The network card that workers speak by."""

from __future__ import annotations

import os

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


def test_the_process_group_is_rays_own_behind_it():
    from ray.train.torch import TorchConfig

    assert issubclass(network.Torch().backend_cls, TorchConfig().backend_cls)
