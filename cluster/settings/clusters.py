"""Ray clusters that run somewhere, for `--on NAME`."""

from __future__ import annotations

from cluster.spec.section import Section


class RayCluster(Section):
    """A running Ray cluster, reached through the Jobs API of its dashboard."""

    address: str
    """The dashboard's URL, e.g. http://ray-head:8265."""
    token_file: str | None = None
    """File with the cluster's token. Left out: the variable RAY_AUTH_TOKEN, or no token."""
    tracking_uri: str | None = None
    """MLflow's tracking server for what runs there. Left out: a store on the cluster's head."""
