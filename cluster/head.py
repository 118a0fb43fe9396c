"""Start the processes of Ray's head node, write what they are to a file, and end. Run as a script, never imported.

Not `ray start`: that always starts Ray Client's server (a third port, 100 MB) and the autoscaler's monitor as well, and
starts one daemon after the other. Both build this same Node.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray._private import ray_constants, services
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.resource_isolation_config import ResourceIsolationConfig

RAYLET_S = 100.0


class Head(Node):
    """A head node whose dashboard starts beside the raylet and its agents, not before them: 3 to 4 s less."""

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        self.failure: BaseException | None = None

        def start() -> None:
            try:
                Node.start_api_server(self, include_dashboard=include_dashboard, raise_on_failure=raise_on_failure)
            except BaseException as error:
                self.failure = error

        self.dashboard = threading.Thread(target=start)
        self.dashboard.start()


def patiently(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Node gives its raylet 30 s to answer: too little on a machine that is busy."""

    def get(*arguments: Any) -> Any:
        deadline = time.monotonic() + RAYLET_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    return get


def main(parameters: dict[str, Any], first_dashboard_port: int, answer: Path) -> None:
    """`parameters` are RayParams' own names. The dashboard takes the first free port of 51, from the given one on."""
    services.get_node = patiently(services.get_node)
    # The dashboard binds seconds after the port was picked, and ends where a port that it was told is taken by then. It
    # tries others only from its default port on.
    ray_constants.DEFAULT_DASHBOARD_PORT = first_dashboard_port
    node = Head(
        RayParams(
            **parameters,
            dashboard_port=None,
            include_dashboard=True,
            include_log_monitor=False,  # pyright: ignore[reportArgumentType] - declared str, used as a boolean
            no_monitor=True,
            # 0 lets each daemon take a free port by itself; RayParams' own defaults are fixed ports.
            dashboard_agent_listen_port=0,
            metrics_agent_port=0,
            metrics_export_port=0,
            runtime_env_agent_port=0,
            resource_isolation_config=ResourceIsolationConfig(enable_resource_isolation=False),
        ),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=False,
    )
    node.dashboard.join()
    if node.failure is not None:
        raise node.failure
    pids = {kind: processes[0].process.pid for kind, processes in node.all_processes.items()}
    answer.write_text(
        json.dumps(
            {
                "address": node.gcs_address,
                "dashboard_url": f"http://{node.webui_url}",
                "metrics_port": node.metrics_export_port,
                "logs": node.get_logs_dir_path(),
                "pids": {kind: [pid, psutil.Process(pid).create_time()] for kind, pid in pids.items()},
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
