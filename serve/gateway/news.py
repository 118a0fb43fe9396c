"""What a gateway and the Keeper tell each other: its loads and models, and which replicas there are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from serve.asking import LOAD_S, PACE_S, ask
from serve.gateway.directory import Directory
from serve.gateway.forward import Forwarder


class News:
    """One gateway's. All methods belong to one event loop."""

    def __init__(self, gateway: str, directory: Directory, forwarder: Forwarder) -> None:
        """`gateway`: its id, as the Keeper knows it."""
        self.gateway = gateway
        self.directory = directory
        self.forwarder = forwarder
        self.models: Mapping[str, Mapping[str, Any]] = {}

    def learn(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """The models that the gateway has from now on."""
        self.models = models

    async def follow(self) -> None:
        """Ask the Keeper what is new and tell it the load, as long as this lives."""
        seen = 0
        while True:
            try:
                seen = await self.look(seen)
            except Exception:
                seen = 0  # it is another one now, or will be; until then what was known last is good
                await asyncio.sleep(1)
            await asyncio.sleep(PACE_S)

    async def look(self, seen: int) -> int:
        """Ask once, and learn the answer; which version of the directory it was. Raises as `ask` does."""
        loads = {name: load.told() for name, load in self.forwarder.loads.items()}
        versions = {name: model["version"] for name, model in self.models.items()}
        applications = {name: model.get("application", name) for name, model in self.models.items()}
        suspects = self.forwarder.suspects
        told = await ask("look", self.gateway, seen, loads, versions, suspects.told(), applications)
        self._wait_for(told)
        self.directory.update(told["replicas"], whole=told["whole"])
        suspects.learn(told["poison"])
        return told["version"]

    async def tell_load(self) -> None:
        """Tell the Keeper of loads that change before it would hear of them anyhow: it decides by them."""
        before: dict[str, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(LOAD_S)
            loads = self.forwarder.loads
            now = {name: (load.arrived, load.present) for name, load in loads.items()}
            changed = {name: loads[name].told() for name in now if now[name] != before.get(name) or now[name][1]}
            before = now
            if changed:
                with contextlib.suppress(Exception):
                    self._wait_for(await ask("load", self.gateway, changed))

    def _wait_for(self, told: Mapping[str, Any]) -> None:
        self.directory.waiting.starts, self.directory.waiting.sharing = told["starts"], told["sharing"]
