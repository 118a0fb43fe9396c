"""`shoal monitor`: Prometheus over the cluster of this home."""

from __future__ import annotations

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output


@click.group()
def command() -> None:
    """Watch the cluster of this home with Prometheus: machines, requests, tokens, training, and two alerts.

    \b
      shoal monitor up         start it; it follows the cluster through every restart
      shoal monitor status     what it scrapes, and which alerts fire (--json for machines)
      shoal monitor down       end it; its samples stay
      shoal monitor rules      print the alert rules, for a Prometheus of your own

    Prometheus itself comes from your system (apt-get install prometheus). Its port and how long it keeps samples are
    `prometheus` in cluster.yaml. `shoal dashboards push` shows what it has gathered in Grafana.
    """


@command.command()
@as_json
def up(as_json: bool) -> None:
    """Start Prometheus on this machine's loopback, with Shoal's alert rules; it runs until `shoal monitor down`.

    \b
      shoal monitor up
      shoal monitor up --json
    """
    from cluster import connect
    from cluster.monitoring import server
    from cluster.settings import home, settings

    with Output(as_json=as_json) as out:
        found, started = server.start(home(), settings().prometheus, out.progress)
        if connect.running() is None:
            out.say("no cluster runs in this home yet; its metrics appear as soon as one does")
        lines = f"Prometheus  {found.url}  ({'started' if started else 'was up already'})\nnext: shoal monitor status"
        out.result({"url": found.url, "started": started}, lines)


@command.command()
@as_json
def down(as_json: bool) -> None:
    """End the Prometheus that `shoal monitor up` started, and nothing else. What it has gathered stays."""
    from cluster.monitoring import server
    from cluster.settings import home

    with Output(as_json=as_json) as out:
        was_up = server.stop(home())
        out.result({"down": was_up}, "down" if was_up else "no Prometheus was running")


@command.command()
@as_json
def status(as_json: bool) -> None:
    """Whether it runs, what it scrapes and how well, and which alerts fire.

    \b
      shoal monitor status
      shoal monitor status --json
    """
    from cluster.monitoring import server
    from cluster.settings import home

    with Output(as_json=as_json) as out:
        found = server.running(home())
        if found is None:
            value = {"url": None, "targets": {}, "rules": [], "firing": []}
            return out.result(value, "Prometheus  not running; `shoal monitor up` starts it")
        health = server.health(found)
        lines = [f"Prometheus  {found.url}"]
        lines += [f"target      {url}  {'up' if good else 'down'}" for url, good in health.targets.items()]
        if not health.targets:
            lines.append("target      none: no cluster runs in this home")
        lines.append(f"alerts      {', '.join(health.rules)}; firing: {', '.join(health.firing) or 'none'}")
        return out.result({"url": found.url, **vars(health)}, "\n".join(lines))


@command.command()
def rules() -> None:
    """Print the alert rules as Prometheus reads them: add the file to `rule_files` of a Prometheus of your own.

    \b
      shoal monitor rules > shoal-rules.yml
      promtool check rules shoal-rules.yml
    """
    from cluster.monitoring import alerts

    click.echo(alerts.text(), nl=False)
