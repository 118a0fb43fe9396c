"""Where metrics are kept and shown."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.section import Section


class Prometheus(Section):
    """The Prometheus that `shoal monitor up` starts."""

    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port on the loopback; 0 takes 9090, or the next free one."""
    retention: Annotated[str, Field(pattern=r"^[0-9]+[hdwy]$")] = "15d"
    """How long samples are kept."""
    url: Annotated[str, Field(pattern=r"^https?://[^ ]+$")] | None = None
    """Where serve.autoscale.query is asked, e.g. http://prometheus.monitoring:9090. Left out: the one that `shoal
    monitor up` starts, at `port`."""

    @property
    def address(self) -> str:
        """`url`, or where `shoal monitor up` begins to look for a port."""
        return self.url or f"http://127.0.0.1:{self.port or 9090}"


class Grafana(Section):
    """A Grafana server, for `shoal dashboards push`."""

    url: str | None = None
    """Its address, e.g. https://grafana.example.com."""
    token_file: str | None = None
    """File with a service account's token. Left out: the variable GRAFANA_TOKEN."""
    folder: str = "Shoal"
    """Folder of the dashboards."""
    datasource: str = "Prometheus"
    """Name of the Prometheus data source in Grafana."""
