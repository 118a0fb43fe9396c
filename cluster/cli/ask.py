"""How to ask a served model: an example input, the lines that send it, and sending it."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import tasks
from cluster.engine import TASK
from cluster.errors import ClusterGone, InputError
from cluster.settings import home

if TYPE_CHECKING:
    from cluster.connect import Cluster
    from train.data import Prepared

JSON = "application/json"
BYTES = "application/octet-stream"
TOKENS = 64  # of a language model's answer, where a person tries it


def example(task: str, prepared: Prepared | None) -> Any:
    """An input of the kind a task takes: the first held-out row, or a general one where there is no data.

    Text: str. Vision: the path of a picture. Tabular: {column: [value]}.
    """
    if task == TASK:
        return "What is the capital of France?"
    modality = tasks.get(task).modality
    row = _held_out_row(prepared) if prepared is not None else {}
    match modality:
        case "text":
            asked = [turn["content"] for turn in row.get("messages", []) if turn["role"] == "user"]
            words = str(row.get("text") or row.get("prompt") or (asked or ["I like you. I love you."])[-1]).split()
            return " ".join(words[:12])
        case "vision":
            if "image" not in row:
                return "picture.png"
            file = home() / "examples" / f"{task}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(row["image"])
            return str(file)
        case _:
            return {key: [value] for key, value in row.items() if key != "label"}


def _held_out_row(prepared: Prepared) -> dict[str, Any]:
    import pyarrow.parquet as parquet

    batch = next(parquet.ParquetFile(prepared.folder / "validation.parquet").iter_batches(batch_size=1))
    return batch.to_pylist()[0]


def body(task: str, value: Any) -> tuple[bytes, str]:
    """A request's body and content type for an input: text, a picture's path, a table or a CSV file's path.

    Text that is a JSON object goes as it is. Raises InputError where a file cannot be read.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.dumps(json.loads(value)).encode(), JSON
        except ValueError:
            pass  # braces in a text are text
    if task == TASK:
        return json.dumps(
            {"messages": [{"role": "user", "content": value}], "max_tokens": TOKENS, "temperature": 0}
        ).encode(), JSON
    match tasks.get(task).modality:
        case "text":
            return json.dumps({"inputs": value}).encode(), JSON
        case "tabular":
            table = value if isinstance(value, dict) else _table(Path(value))
            return json.dumps({"table": table}).encode(), JSON
        case _:
            return _read(Path(value)), BYTES


def path(task: str, name: str) -> str:
    """Where requests to a model of this task go, at the gateway."""
    return f"/models/{name}/v1/chat/completions" if task == TASK else f"/models/{name}"


def lines(task: str, url: str, value: Any, certificate: str = "") -> tuple[str, str]:
    """A curl line and a Python line that ask a served model for `value`; both work when pasted. `certificate` is a file
    that both must trust."""
    if certificate:
        curl, python = lines(task, url, value)
        file = shlex.quote(certificate)
        return curl.replace("curl -s", f"curl -s --cacert {file}", 1), f"SSL_CERT_FILE={file} {python}"
    if task == TASK:
        return _chat_lines(url, value)
    if tasks.get(task).modality == "vision":
        curl = f"curl -s {url} -H 'content-type: {BYTES}' --data-binary @{shlex.quote(str(value))}"
    else:
        curl = f"curl -s {url} -H 'content-type: {JSON}' -d {shlex.quote(body(task, value)[0].decode())}"
    method = task.replace("-", "_")
    call = f'InferenceClient(model="{url}").{method}({value!r})'
    return curl, f"python -c {shlex.quote(f'from huggingface_hub import InferenceClient; print({call})')}"


def _chat_lines(url: str, value: Any) -> tuple[str, str]:
    """The same for a language model: OpenAI's client, and the model by its name, as one would write it."""
    root, _, name = url.partition("/models/")
    request = {"model": name, **json.loads(body(TASK, value)[0])}
    curl = f"curl -s {root}/v1/chat/completions -H 'content-type: {JSON}' -d {shlex.quote(json.dumps(request))}"
    arguments = ", ".join(f"{key}={part!r}" for key, part in request.items())
    call = f'OpenAI(base_url="{root}/v1", api_key="none").chat.completions.create({arguments})'
    return curl, f"python -c {shlex.quote(f'from openai import OpenAI; print({call}.choices[0].message.content)')}"


def send(cluster: Cluster, path: str, content: bytes, content_type: str, *, timeout_s: float = 120) -> Any:
    """POST to the gateway and decode the JSON answer. Raises InputError on a 4xx and where the gateway's certificate is
    not good, ClusterGone where nobody answers."""
    import httpx

    from cluster.asked import ask

    url = f"{cluster.http_url}{path}"
    try:
        response = ask(cluster, "POST", path, content=content, content_type=content_type, timeout_s=timeout_s)
    except httpx.HTTPError as error:
        raise ClusterGone(f"{url}: no answer ({error}); `shoal status` says what is running") from None
    try:
        answer = response.json()
    except ValueError:
        answer = {"error": response.text[:500]}
    if response.is_success:
        return answer
    message = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = message.get("message", message) if isinstance(message, dict) else message  # OpenAI's shape
    if 400 <= response.status_code < 500:
        raise InputError(f"{url}: {response.status_code}: {message}")
    raise ClusterGone(f"{url}: {response.status_code}: {message}; `shoal logs` has more")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give the path of a file") from None


def _table(path: Path) -> dict[str, list[Any]]:
    rows = list(csv.DictReader(io.StringIO(_read(path).decode("utf-8", "replace"))))
    if not rows:
        raise InputError(f"{path}: no rows; give a CSV file with a line of column names")
    return {key: [_number(row[key]) for row in rows] for key in rows[0]}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
