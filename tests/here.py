"""`shoal` in the tests' own process, which has imported already what a new one takes seconds for.

For the commands between those that a test is about: what a stranger types, what is interrupted and what must end by
itself runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

from cluster.cli import main


def shoal(*words: str, folder: Path, home: Path | str) -> subprocess.CompletedProcess[str]:
    """One command in `folder` with that $SHOAL_HOME, as `subprocess.run` tells of it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"SHOAL_HOME": str(home)}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main(list(words))
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def told(*words: str, folder: Path, home: Path | str, code: int = 0) -> Any:
    """What the command says with --json, its last line; it must end with `code`."""
    done = shoal(*words, "--json", folder=folder, home=home)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
