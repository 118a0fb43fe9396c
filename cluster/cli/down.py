"""`shoal down`."""

from __future__ import annotations

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output


@click.command()
@click.argument("name", required=False)
@as_json
def command(name: str | None, as_json: bool) -> None:
    """Stop one model by NAME, or everything: returns when it is down, and leaves no process. What was trained stays.

    \b
      shoal down reviews     the others go on serving
      shoal down             Ray and all that runs on it

    Everything is also the Prometheus that `shoal monitor up` started; its samples stay.
    """
    from cluster import connect
    from cluster.errors import NotFound
    from cluster.monitoring import server
    from cluster.settings import home

    with Output(as_json=as_json) as out:
        if name is None:
            was_up = connect.down()
            was_up = server.stop(home()) or was_up
            out.result({"down": was_up}, "down" if was_up else "nothing was running")
            return
        from serve.run import endpoints, remove

        cluster = connect.running()
        served = [endpoint.name for endpoint in endpoints(cluster)] if cluster else []
        if cluster is None or name not in served:
            raise NotFound(f"{name}: not served; served are: {', '.join(served) or 'none'}")
        remove(name, cluster)
        out.result({"down": True, "name": name}, f"{name} is down")
