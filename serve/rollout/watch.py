"""The Keeper's part: adds up what the gateways tell of each roll-out, judges it, and has the outcome carried out.

Held in memory alone. Gateways tell all of their counts each time, and what was decided as well, so the next Keeper
knows within half a second what this one did; an outcome that nobody carried out is found in what they tell.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from typing import Any

from cluster.monitoring.rollout import rolled_back, weigh
from serve.rollout import entry
from serve.rollout.judge import Verdict, judge
from serve.rollout.stats import Stats

log = logging.getLogger("ray.serve")
AGAIN_S = 5.0  # between two attempts to carry an outcome out
FRESH_S = 3.0  # a gateway that tells nothing for so long has ended
GONE_S = 10.0  # a roll-out that no gateway tells of any more is over


class Followed:
    """One roll-out: what each gateway told last, be it gone since, and what was decided."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.by: dict[str, dict[str, Any]] = {}
        self.heard = time.monotonic()
        self.decided: dict[str, Any] | None = None
        self.verdict = Verdict("keep", "it has just begun")
        self.carrying: asyncio.Task[None] | None = None
        self.trouble = ""

    def sums(self) -> tuple[Stats, Stats]:
        """Of the old version and of the new one, over all gateways."""
        old, new = Stats(), Stats()
        for told in self.by.values():
            # What is under way at a gateway that has died is under way no more.
            gone = {"ages": ()} if self.heard - told["heard"] > FRESH_S else {}
            old.add(Stats({**told["old"], **gone}))
            new.add(Stats({**told["new"], **gone}))
        return old, new

    @property
    def state(self) -> str:
        return self.decided["state"] if self.decided is not None else self.found["state"]

    def summary(self) -> dict[str, Any]:
        old, new = self.sums()
        return {"old": old.summary(), "new": new.summary()}


class Watch:
    """All roll-outs of a cluster. All methods belong to one event loop."""

    def __init__(self) -> None:
        # Here and not at the top: every copy of a model knows the Keeper's module, and none has to read files.
        from cluster.spec.rollout import Rollout

        self.keys = Rollout.model_validate
        self.followed: dict[str, Followed] = {}

    def hear(self, gateway: str, told: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """What a gateway tells ({name: {found, old, new}}); what is decided: {name: {id, state, reason}}."""
        self._forget()
        answer: dict[str, dict[str, Any]] = {}
        for name, one in told.items():
            found = one["found"]
            known = self.followed.get(name)
            if known is None or (known.found["id"] != found["id"] and found["began"] >= known.found["began"]):
                known = self.followed[name] = Followed(found)
            if known.found["id"] != found["id"]:
                continue  # this gateway does not know of the newer one yet
            known.heard = time.monotonic()
            known.by[gateway] = {**one, "heard": known.heard}
            if known.decided is None and found["state"] != entry.RUNNING:
                # Decided by a Keeper before this one, or by hand.
                known.decided = {key: found[key] for key in ("id", "state", "reason")}
            known.found = found
            if known.decided is None:
                self._judge(name, known)
            if known.decided is not None:
                answer[name] = known.decided
                self._carry_out(name, known)
            self._record(name, known)
        return answer

    def told(self) -> dict[str, Any]:
        """All that is known, for people and for whoever carries an outcome out: by model."""
        self._forget()
        return {
            name: {
                "id": one.found["id"],
                "state": one.state,
                "reason": one.decided["reason"] if one.decided is not None else one.verdict.reason,
                "trouble": one.trouble,
                "elapsed_s": round(time.time() - one.found["began"], 1),
                "gateways": {
                    gateway: {key: told["found"][key] for key in ("id", "state", "keys")}
                    for gateway, told in one.by.items()
                },
                **one.summary(),
            }
            for name, one in sorted(self.followed.items())
        }

    def _judge(self, name: str, known: Followed) -> None:
        elapsed = time.time() - known.found["began"]
        known.verdict = judge(*known.sums(), self.keys(known.found["keys"]), elapsed)
        if known.verdict.action == "keep":
            return
        state = entry.PROMOTING if known.verdict.action == "promote" else entry.ROLLED_BACK
        known.decided = {"id": known.found["id"], "state": state, "reason": known.verdict.reason}
        log.warning("roll-out of %s: %s: %s", name, state, known.verdict.reason)
        if state == entry.ROLLED_BACK:
            rolled_back(name)

    def _record(self, name: str, known: Followed) -> None:
        _, new = known.sums()
        weight = 0.0 if known.state in entry.ENDS else known.found["keys"]["canary"]
        weigh(name, known.found["version"], weight, new.agreed / new.compared if new.compared else None)

    def _carry_out(self, name: str, known: Followed) -> None:
        if known.carrying is None or known.carrying.done():
            known.carrying = asyncio.create_task(self._carried_out(name, known))

    async def _carried_out(self, name: str, known: Followed) -> None:
        """By a task of Ray's, in a process of its own: it waits for replicas and opens the registry. Where it fails it
        is begun again as long as gateways tell of the roll-out."""
        import ray

        assert known.decided is not None
        head = {"node:__internal_head__": 0.001}  # where commands run, whose locks it shares
        work = ray.remote(num_cpus=0, resources=head, max_retries=0)(carry_out)
        try:
            await work.remote(name, known.found, {**known.decided, "summary": known.summary()})
            known.trouble = ""
        except Exception as error:
            known.trouble = str(getattr(error, "cause", None) or error)[-500:]
            log.warning("roll-out of %s: %s", name, known.trouble)
            await asyncio.sleep(AGAIN_S)

    def _forget(self) -> None:
        now = time.monotonic()
        for name in [name for name, one in self.followed.items() if now - one.heard > GONE_S]:
            del self.followed[name]


def carry_out(name: str, found: dict[str, Any], decided: dict[str, Any]) -> None:
    """The task. By name: what it needs is much, and the Keeper's own process imports none of it."""
    importlib.import_module("serve.rollout.settle").carry_out(name, found, decided)
