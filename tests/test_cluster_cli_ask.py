"""The lines that ask a language model: they are what a person pastes."""

import http.server
import json
import shlex
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.cli import ask
from cluster.errors import InputError

URL = "http://127.0.0.1:8000/models/chat:verse"


def test_the_lines_of_a_language_model_name_it_as_openais_client_does():
    curl, python = ask.lines("text-generation", URL, 'it\'s "me"')
    words = shlex.split(curl)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/chat/completions"]
    request = json.loads(words[-1])
    assert (request["model"], request["messages"]) == ("chat:verse", [{"role": "user", "content": 'it\'s "me"'}])
    program, flag, code = shlex.split(python)
    assert (program, flag) == ("python", "-c")
    sent = {}

    class OpenAI:
        def __init__(self, base_url, api_key):
            sent["url"] = base_url
            self.chat = self.completions = self
            self.choices = [self]
            self.message, self.content = self, "answer"

        def create(self, **request):
            sent.update(request)
            return self

    said = []
    exec(code.removeprefix("from openai import OpenAI; "), {"OpenAI": OpenAI, "print": said.append})  # noqa: S102
    assert (sent.pop("url"), said) == ("http://127.0.0.1:8000/v1", ["answer"])
    assert sent == request


def test_predict_asks_a_language_model_by_chat():
    body, media = ask.body("text-generation", "hi")
    assert json.loads(body)["messages"] == [{"role": "user", "content": "hi"}]
    assert media == "application/json"
    assert ask.path("text-generation", "chat") == "/models/chat/v1/chat/completions"
    assert ask.path("text-classification", "reviews") == "/models/reviews"


def test_openais_errors_are_told_in_a_sentence():
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no such model", "type": "NotFoundError"}}')

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        cluster: Any = SimpleNamespace(http_url=f"http://127.0.0.1:{server.server_port}", listen={}, token="")
        with pytest.raises(InputError, match=r"404: no such model$"):
            ask.send(cluster, "/models/chat", b"{}", ask.JSON)
