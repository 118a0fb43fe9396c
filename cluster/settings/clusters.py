"""Ray clusters that run somewhere, for `--on NAME`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.section import Section


class RayCluster(Section):
    """A running Ray cluster, reached through the Jobs API of its dashboard."""

    address: Annotated[str, Field(pattern=r"^https?://[^/\s]+")]
    """The dashboard's URL, e.g. http://ray-head:8265."""
    token_file: str | None = None
    """File with the cluster's token. Left out: the variable RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or no token."""
    tracking_uri: str | None = None
    """MLflow's tracking server for what runs there. Left out: what $SHOAL_HOME there says."""
    shared: list[str] = []
    """Folders that the cluster's nodes see under the same path as this machine, e.g. [/mnt/team]: what a file names in
    them does not travel."""
