"""`shoal down`."""

from __future__ import annotations

import click

from cluster.cli.options import as_json, on_cluster
from cluster.cli.output import Output


def _whole(name: str | None, **_: object) -> str:
    return "" if name else "a cluster that Shoal did not start is not stopped; name a model, or see `shoal stop`"


@click.command()
@click.argument("name", required=False)
@as_json
@on_cluster(refuse=_whole)
def command(name: str | None, as_json: bool) -> None:
    """Stop one model by NAME, or everything: returns when it is down, and leaves no process. What was trained stays.

    \b
      shoal down reviews              the others go on serving
      shoal down chat:verse           an adapter leaves the engine of chat, which goes on
      shoal down                      Ray and all that runs on it, and the Prometheus of `shoal monitor up`
      shoal down reviews --on prod    one model on a cluster, which itself is left alone
    """
    from cluster import attached, connect
    from cluster.errors import InputError, NotFound
    from cluster.monitoring import server
    from cluster.settings import home

    with Output(as_json=as_json) as out:
        if (there := attached.address()) is not None:
            from serve.run import remove

            if name is None:
                raise InputError(f"RAY_ADDRESS: {there} is no Ray that Shoal started: name a model to stop")
            with connect.session(progress=out.progress) as cluster:
                remove(name, cluster)
            return out.result({"down": True, "name": name}, f"{name} is down")
        if name is None:
            was_up = connect.down()
            was_up = server.stop(home()) or was_up
            return out.result({"down": was_up}, "down" if was_up else "nothing was running")
        from serve.run import remove

        cluster = connect.running()
        if cluster is None:
            raise NotFound(f"{name}: not served; served are: none")
        remove(name, cluster)
        return out.result({"down": True, "name": name}, f"{name} is down")
