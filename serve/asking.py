"""How gateways, replicas and Serve's controller reach the Keeper, and how often they do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

NAME = "shoal:keeper"
NAMESPACE = "shoal"
BEAT_S = 1.0  # between two words of a replica
PACE_S = 0.1  # a gateway does not ask more often what is new
LOAD_S = 0.25  # and tells a load that changes so often


def keeper() -> Any:
    """The actor's handle; the first who asks makes it, on the head, where it is reached as long as Ray itself is. It
    lives until its cluster ends. Asks Ray's control service, and waits for that as long as it is away: a loop uses
    `ask`."""
    import ray

    from serve.keeper import Keeper

    return (
        ray.remote(Keeper)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            max_restarts=-1,
            max_concurrency=10_000,
        )
        .remote()
    )


_handles: dict[str, Any] = {}  # by the node that this process is attached to: there is one in a replica's life


async def ask(method: str, *arguments: Any, within_s: float = 5) -> Any:
    """What the Keeper says, without ever stopping the loop: nothing here waits for Ray's control service. Raises
    TimeoutError, and Ray's own errors while the Keeper is away."""
    import ray
    from ray.exceptions import ActorDiedError

    node = ray.get_runtime_context().get_node_id()
    async with asyncio.timeout(within_s):
        if node not in _handles:
            # In a thread of its own, which waits for as long as it must; the next who asks tries another.
            found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            threading.Thread(target=_find, args=(asyncio.get_running_loop(), found), daemon=True).start()
            _handles[node] = await found
        try:
            return await asyncio.shield(answered(getattr(_handles[node], method).remote(*arguments)))
        except ActorDiedError:  # it was killed for good; somebody makes another
            _handles.pop(node, None)
            raise


def _find(loop: asyncio.AbstractEventLoop, found: asyncio.Future[Any]) -> None:
    def tell(handle: Any, error: Exception | None) -> None:
        if not found.done():
            found.set_exception(error) if error is not None else found.set_result(handle)

    handle, problem = None, None
    try:
        handle = keeper()
    except Exception as error:
        problem = error
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(tell, handle, problem)


async def answered(reference: Any) -> Any:
    """What an actor's method returns, as a coroutine: Ray's own references are none."""
    return await reference
