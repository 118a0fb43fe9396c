"""What the machine or cluster gives, in `cluster.yaml`; and where all state lives.

`cluster.yaml` is looked for in $SHOAL_HOME, then in the working directory. Nothing is read at import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from cluster.errors import InputError
from cluster.settings.access import Access, Prices, RequestLog
from cluster.settings.clusters import RayCluster
from cluster.settings.inputs import Inputs
from cluster.settings.kubernetes import Kubernetes
from cluster.settings.monitoring import Grafana, Prometheus
from cluster.settings.shared import Shared
from cluster.spec.load import build, parse_yaml, read_text
from cluster.spec.section import NAME, Section

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for a job's command, and for nothing else
Port = Annotated[int, Field(ge=0, le=65_535)]


class Http(Section):
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface."""
    port: Port = 0
    """Port to listen on; 0 takes 8000, or the next free one."""
    max_body_mb: Annotated[float, Field(gt=0, le=10_000)] = 32
    """Requests larger than this are answered 413."""
    send_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 15
    """Clients whose request takes longer are answered 408; a body may take as long again for every 256 KiB."""
    gateways: Annotated[int, Field(ge=1, le=8)] = 2
    """Gateways that share the work; with two, a request outlives the death of one."""
    name: Annotated[str, Field(pattern=r"^[0-9A-Za-z:]([0-9A-Za-z.:-]*[0-9A-Za-z:])?$")] | None = None
    """Name by which clients reach the gateway, for the addresses that it tells; with TLS the certificate must be for
    it. Left out: the address."""
    certificate: str | None = None
    """File with the certificate, and those that vouch for it, in PEM: the gateway then speaks HTTPS. Looked for beside
    this file; a renewed one is taken up within seconds."""
    key: str | None = None
    """File with the certificate's key, in PEM."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Http:
        if (self.certificate is None) != (self.key is None):
            given, other = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise ValueError(f"http.{given}: needs http.{other} beside it")
        return self

    def beside(self, folder: Path) -> Http:
        """The same, its files found from any working directory: relative ones are meant from `folder`."""
        files = {key: value for key in ("certificate", "key") if (value := getattr(self, key)) is not None}
        found = {key: str(folder.absolute() / Path(value).expanduser()) for key, value in files.items()}
        return self.model_copy(update=found)


class RayNode(Section):
    """The embedded Ray."""

    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Cores Ray may hand out. Left out: four times the machine's, so that training and idle replicas share them."""
    object_store_mb: Annotated[int, Field(ge=100)] = 300
    """Shared memory of Ray's object store, in MiB."""


class Settings(Section):
    """cluster.yaml."""

    tracking_uri: str | None = None
    """MLflow's tracking server. Left out: SQLite and a folder under $SHOAL_HOME."""
    http: Http = Http()
    ray: RayNode = RayNode()
    inputs: Inputs = Inputs()
    clusters: dict[str, RayCluster] = {}
    """Running Ray clusters by the name that `--on` takes."""
    kubernetes: Kubernetes = Kubernetes()
    shared: dict[Annotated[str, Field(pattern=NAME)], Shared] = {}
    """Copies that many small models share, by the name that `serve.shared` takes."""
    prometheus: Prometheus = Prometheus()
    grafana: Grafana = Grafana()
    access: Access = Access()
    request_log: RequestLog = RequestLog()
    prices: Prices = Prices()


def home() -> Path:
    """The folder of all state: $SHOAL_HOME, or .shoal in the working directory. Absolute; made if it is missing.

    In a Ray job it is ~/.shoal, for Ray removes a job's working directory. Raises InputError where it cannot be made.
    """
    text = os.environ.get("SHOAL_HOME") or ("~/.shoal" if _JOB in os.environ else ".shoal")
    try:
        folder = Path(text).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"SHOAL_HOME: {text!r} cannot be made: {why}; name a folder that can be written") from None
    return folder


def settings() -> Settings:
    """cluster.yaml as it stands now, or the defaults. Raises InputError with the place of a fault."""
    for path in (home() / "cluster.yaml", Path("cluster.yaml")):
        if path.is_file():
            text = read_text(path, remedy="remove it, or write what `shoal schema cluster` describes")
            tree, lines = parse_yaml(text, where=str(path))
            found = build(Settings, {} if tree is None else tree, lines, where=str(path))
            return found.model_copy(update={"http": found.http.beside(path.parent)})
    return Settings()


def tracking_uri() -> str:
    """MLflow's tracking URI in force. SHOAL_TRACKING_URI is set for jobs that `--on` starts."""
    # In a URI % and ? mean something else than in a path.
    file = str(home() / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return os.environ.get("SHOAL_TRACKING_URI") or settings().tracking_uri or f"sqlite:///{file}"
