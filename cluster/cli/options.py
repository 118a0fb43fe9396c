"""The arguments that verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the last line is the result.")
on = click.option("--on", metavar="NAME", help="A cluster of cluster.yaml. Left out: RAY_ADDRESS, where it is a URL.")


def file_and_overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """FILE [KEY=VALUE]...: a model's file and what to set otherwise in it."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("file", metavar="FILE")(command)


def on_cluster(
    *, data: bool = True, refuse: Callable[..., str] = lambda **_: ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--on NAME: the verb runs as a job of that cluster, with its files and, if `data`, what data they name.

    Stands under the verb's other options. `refuse` says of its arguments why not, where they make no sense there.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def here_or_there(on: str | None, **arguments: Any) -> Any:
            from cluster.submit.target import find

            if (target := find(on)) is None:
                return command(**arguments)
            from cluster.cli import remote
            from cluster.errors import InputError

            if why := refuse(**arguments):
                raise InputError(f"{target.name}: {why}")
            context = click.get_current_context()
            return context.exit(remote.run(target, context, arguments, data=data))

        return click.option("--on", metavar="NAME", help=_ON)(here_or_there)

    return decorate


_ON = """Run it as a job on this cluster of cluster.yaml (clusters: {NAME: {address: http://HOST:8265}}); left out, on
the one whose URL RAY_ADDRESS is, else here. What FILE names of data and models on this machine is sent along; an
absolute path that is not here is taken to be there, and so is what lies in `shared` of the cluster."""
