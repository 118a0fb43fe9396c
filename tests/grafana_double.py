"""An HTTP server that answers as Grafana's documented API does: health, folders, data sources, dashboards.

There is no Grafana to test with. Statuses and bodies are those of its HTTP API reference.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "glsa_right"


class Grafana:
    """What the server holds. `refuse` maps "METHOD /path" to a status and a body that it answers with instead;
    `before` is called with each request before it is answered, so that a test can act in between."""

    def __init__(self) -> None:
        self.folders: list[dict[str, Any]] = []
        self.dashboards: dict[str, dict[str, Any]] = {}  # uid: {"dashboard", "meta"}
        self.sources = [
            {"name": "Prometheus", "type": "prometheus", "uid": "prom-1"},
            {"name": "Logs", "type": "loki", "uid": "l"},
        ]
        self.refuse: dict[str, tuple[int, Any]] = {}
        self.before: Callable[[str], None] = lambda request: None
        self.writes: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        if path == "/api/health":
            return 200, {"commit": "abc", "database": "ok", "version": "11.3.0"}
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401, "traceID": ""}
        key = f"{method} {path}"
        if key in self.refuse:
            return self.refuse[key]
        if key == "GET /api/folders":
            return 200, self.folders
        if key == "POST /api/folders":
            return self.make_folder(body)
        if key == "GET /api/datasources":
            return 200, self.sources
        if method == "GET" and path.startswith("/api/datasources/name/"):
            found = [one for one in self.sources if one["name"] == unquote(path.rpartition("/")[2])]
            return (200, found[0]) if found else (404, {"message": "Data source not found", "traceID": ""})
        if method == "GET" and path.startswith("/api/dashboards/uid/"):
            stored = self.dashboards.get(path.rpartition("/")[2])
            return (200, stored) if stored else (404, {"message": "Dashboard not found", "traceID": ""})
        if key == "POST /api/dashboards/db":
            return self.save(body)
        return 404, {"message": "Not found"}

    def make_folder(self, body: Any) -> tuple[int, Any]:
        if any(folder["title"] == body["title"] for folder in self.folders):
            return 409, {"message": "a folder with the same name already exists in the current location"}
        number = len(self.folders) + 1
        self.folders.append({"id": number, "uid": f"folder-{number}", "title": body["title"]})
        self.writes.append(f"folder {body['title']}")
        return 200, {**self.folders[-1], "version": 1}

    def save(self, body: Any) -> tuple[int, Any]:
        sent = body["dashboard"]
        if not sent.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        if body.get("folderUid") not in [folder["uid"] for folder in self.folders]:
            return 400, {"message": "folder not found", "status": "not-found"}
        for uid, other in self.dashboards.items():
            twin = other["dashboard"]["title"] == sent["title"] and other["meta"]["folderUid"] == body["folderUid"]
            if twin and uid != sent["uid"]:
                return 412, {
                    "message": "A dashboard with the same name in the folder already exists",
                    "status": "name-exists",
                }
        stored = self.dashboards.get(sent["uid"])
        if stored is None and sent.get("id"):
            return 404, {"message": "Dashboard not found", "status": "not-found"}
        version = stored["dashboard"]["version"] if stored else 0
        if stored and not body["overwrite"] and sent.get("version") != version:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        number = stored["dashboard"]["id"] if stored else len(self.dashboards) + 1
        # As a newer Grafana does: its own schema, and defaults that were not sent.
        kept = {**sent, "id": number, "version": version + 1, "schemaVersion": 41, "weekStart": ""}
        self.dashboards[sent["uid"]] = {
            "dashboard": kept,
            "meta": {"folderUid": body["folderUid"], "version": version + 1},
        }
        self.writes.append(f"dashboard {sent['uid']}")
        url = f"/d/{sent['uid']}/x"
        return 200, {"id": number, "uid": sent["uid"], "url": url, "status": "success", "version": version + 1}


@contextmanager
def grafana(prefix: str = "") -> Iterator[Grafana]:
    """A Grafana at an address of the loopback, under a path where it is given."""
    state = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = urlsplit(self.path).path
            state.before(f"{self.command} {path}")
            if path.startswith(f"{prefix}/api/"):
                token = self.headers.get("authorization", "")
                status, value = state.answer(self.command, path.removeprefix(prefix), json.loads(raw or b"null"), token)
            else:
                status, value = 404, "<html>nothing here</html>"
            body = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            if status in (301, 302, 308):
                self.send_header("location", value)
            self.send_header("content-type", "text/html" if isinstance(value, str) else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    yield state
    server.shutdown()
    server.server_close()
