"""`shoal dashboards`: what Prometheus gathers, shown in Grafana."""

from __future__ import annotations

import json

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table


@click.group()
def command() -> None:
    """Grafana's dashboards: one of the whole cluster (`overview`), one of a single model (`model`).

    \b
      shoal dashboards push                            into the Grafana of cluster.yaml (--json for machines)
      shoal dashboards show overview > overview.json   for a Grafana that reads files, or to import by hand

    The Grafana is named in cluster.yaml, and needs a Prometheus as data source that scrapes the cluster:

    \b
      grafana: {url: https://grafana.example.com, token_file: ~/.grafana-token, datasource: Prometheus}

    The token is a service account's with the role Editor; the variable GRAFANA_TOKEN does as well.
    """


@command.command()
@as_json
def push(as_json: bool) -> None:
    """Write the dashboards into Grafana's folder; what is there as it should be is left alone.

    Changes that somebody made to them in Grafana are replaced; Grafana's version history keeps them.

    \b
      shoal dashboards push
      GRAFANA_TOKEN=glsa_... shoal dashboards push --json
    """
    from cluster.monitoring import grafana
    from cluster.settings import settings

    with Output(as_json=as_json) as out:
        pushed = grafana.push(settings().grafana, progress=out.progress)
        rows = [[one.name, one.change, one.url] for one in pushed]
        out.result([vars(one) for one in pushed], table(["dashboard", "", "url"], rows))


@command.command()
@click.argument("name", metavar="overview|model")
def show(name: str) -> None:
    """Print a dashboard as the JSON that Grafana imports, or reads from a folder (provisioning).

    \b
      shoal dashboards show overview > /var/lib/grafana/dashboards/shoal-overview.json
      shoal dashboards show model
    """
    from cluster.monitoring.dashboards import dashboard
    from cluster.settings import settings

    click.echo(json.dumps(dashboard(name, datasource=settings().grafana.datasource), indent=2))
