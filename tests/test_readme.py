"""The README's words run as they stand, and its matrix is the code's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[tuple[str, str]]:
    """Fenced blocks of a kind: what follows the kind on the fence's line, and the text."""
    return re.findall(rf"^```{kind} ?(.*?)\n(.*?)^```$", README, re.M | re.S)


def test_the_matrix_is_read_off_the_code():
    from cluster import tasks

    shown = README.split("<!-- tasks: begin -->\n")[1].split("<!-- tasks: end -->")[0]
    assert shown.strip() == tasks.markdown().strip()


@pytest.mark.slow
def test_the_blocks_run(tmp_path):
    assert shutil.which("shoal", path=str(Path(sys.executable).parent)), "the command is installed beside python"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SHOAL_HOME": str(tmp_path / "home")}
    for name, text in blocks("yaml"):
        (tmp_path / name).write_text(text)
    [(_, commands)] = blocks("sh")
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    lines = [line for line in lines if line]
    [(_, program)] = blocks("python")

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    try:
        answered = {}
        for line in lines:
            if line == "shoal down":
                url = re.findall(r"http://\S+/models/flowers", answered["shoal up flowers.yaml"])[0]
                said = run([sys.executable, "-c", re.sub(r'model="[^"]+"', f'model="{url}"', program)])
                assert "setosa" in said
            answered[line] = run(["bash", "-c", line])
        predicted = answered["shoal predict flowers samples/data/iris/test.csv"]
        assert {"setosa", "versicolor", "virginica"} <= set(re.findall(r"\w+", predicted))
        assert "models:/flowers/1" in answered["shoal up flowers.yaml"]
        assert "champion" in answered["shoal models"]
        assert answered["shoal down"].strip() == "down"
    finally:
        subprocess.run(["bash", "-c", "shoal down"], cwd=tmp_path, env=env, check=False, capture_output=True)
