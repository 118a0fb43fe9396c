"""Hub references through the real huggingface_hub, against a small server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

COMMIT = "a" * 40
PICKLED = {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"a pickle"}
GOOD = {
    **PICKLED,
    "model.safetensors": b"\x3b" + bytes(7) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}     ' + bytes(4),
    "vocab.txt": b"[UNK]\n",
    "run_me.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
}
ERRORS = {
    "org/gated": (403, "GatedRepo"),
    "org/gone": (404, "RepoNotFound"),
    "org/old": (404, "RevisionNotFound"),
    "org/closed": (403, ""),
    "org/busy": (500, ""),
}
# The Hub's address is read when huggingface_hub is imported: so in a process of its own.
ASK = """
import json, sys
from cluster.errors import ShoalError
from cluster.registry import resolve
for reference in sys.argv[1:]:
    told = []
    try:
        said = str(resolve(reference, progress=lambda *what: told.append(what)))
    except ShoalError as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([said, told[-1:]]))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        files = GOOD if name == "org/good" else PICKLED
        if name in ERRORS:
            status, code = ERRORS[name]
            self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        elif "/tree/" in path:
            tree = [{"type": "file", "path": file, "size": len(raw), "oid": digest(raw)} for file, raw in files.items()]
            self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": name, "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        else:
            raw = files[path.partition(f"/resolve/{COMMIT}/")[2]]
            self.answer(200, raw, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(raw)}"'})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def digest(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(endpoint: str, home: Path, *references: str, **environment: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *references],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "SHOAL_HOME": str(home / "shoal"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""  # no bars of its own
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_model_comes_without_pickles_or_code(hub: str, tmp_path: Path) -> None:
    [[said, told]] = ask(hub, tmp_path, "org/good")
    folder = Path(said)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    assert (folder / "vocab.txt").read_bytes() == b"[UNK]\n"
    assert not any(path.endswith((".bin", ".py", "onnx/config.json")) for path in Hub.asked)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert told == [["download", size, size]]
    # Fetched once, it is there without the Hub too.
    assert ask("http://127.0.0.1:9", tmp_path, "org/good")[0][0] == said
    assert ask(hub, tmp_path, "org/good", HF_HUB_OFFLINE="1")[0][0] == said


def test_each_failure_says_what_to_do(hub: str, tmp_path: Path) -> None:
    wanted = {
        "org/pickled": "model: org/pickled has no safetensors weights on the Hub, and pickles are never loaded",
        "org/gated": "model: org/gated is gated; ask for access at https://huggingface.co/org/gated, then set HF_TOKEN",
        "org/gone": "model: org/gone is not on the Hub, or is private; check the name",
        "org/old@v9": "model: org/old@v9 has no revision 'v9'; https://huggingface.co/org/old/commits lists them",
        "org/closed": "model: org/closed is refused by the Hub (403); set HF_TOKEN",
        "org/busy": "model: org/busy cannot be fetched: the Hub answers 500; try again later",
    }
    for (said, _), start in zip(ask(hub, tmp_path, *wanted), wanted.values(), strict=True):
        assert said.startswith(f"InputError: {start}"), said
    away = (
        "InputError: model: org/new cannot be fetched: the Hub is not reachable and it is not in the cache; go online"
    )
    assert ask("http://127.0.0.1:9", tmp_path, "org/new")[0][0].startswith(away)
    assert ask(hub, tmp_path, "org/new", HF_HUB_OFFLINE="1")[0][0].startswith(away)
