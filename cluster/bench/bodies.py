"""What the load consists of: bodies of requests from rows of the model's own data, from a file of them, or made up."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import tasks
from cluster.engine import TASK
from cluster.errors import InputError

JSON = "application/json"
BYTES = "application/octet-stream"
COUNT = 512  # different requests at most
_WHOLE_BYTES = 256 << 20  # of all requests together
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Bodies:
    """Requests of one kind: `path` is that of OpenAI's route they are for, empty on the task's own route; `about` says
    where they are from."""

    content: list[bytes]
    content_type: str
    path: str
    about: str


def of_rows(task: str, rows: Sequence[Mapping[str, Any]], about: str, *, tokens: int) -> Bodies:
    """One request a row of prepared data (train.data.Prepared names its columns)."""
    if task == TASK:
        return _asked([_prompt(row) for row in rows], about, tokens)
    modality, columns = tasks.get(task).modality, set(rows[0])
    if modality == "text" and "text" in columns:
        return Bodies([_json({"inputs": _pair(row)}) for row in rows], JSON, "", about)
    if "image" in columns:
        return Bodies([bytes(row["image"]) for row in rows], BYTES, "", about)
    if modality == "tabular":
        tables = ({key: [value] for key, value in row.items() if key != "label"} for row in rows)
        return Bodies([_json({"table": table}) for table in tables], JSON, "", about)
    raise InputError(f"task: {task}: no request can be made of its rows yet; give --requests-file")


def made_up(task: str, *, tokens: int, seed: int) -> Bodies:
    """Requests for a model whose file names no data. Raises InputError where only its data could tell."""
    generator = random.Random(seed)
    about = f"{COUNT} made up"
    if task == TASK:
        prompts: list[Any] = [f"Story {generator.randrange(10**6)}. {_sentence(generator)}" for _ in range(COUNT)]
        return _asked(prompts, about, tokens)
    match tasks.get(task).modality:
        case "text":
            return Bodies([_json({"inputs": _sentence(generator)}) for _ in range(COUNT)], JSON, "", about)
        case "vision":
            return Bodies([_picture(generator) for _ in range(32)], BYTES, "", "32 made up")
    raise InputError(f"data.train: missing, and no {task} request can be made up; give it, or --requests-file")


def of_file(path: Path, task: str) -> Bodies:
    """The lines of a file, each the JSON body of a request. Raises InputError, naming the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--requests-file: {path}: cannot be read: {why}") from None
    values = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"--requests-file: {path}, line {number}: no JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"--requests-file: {path}, line {number}: {line[:60]!r} is no object; write a whole body")
        values.append(value)
    if not values:
        raise InputError(f"--requests-file: {path}: empty; write a request's JSON body a line")
    about = f"{len(values)} of {path.name}"
    if task != TASK:
        return Bodies([_json(value) for value in values], JSON, "", about)
    kinds = {_CHAT if "messages" in value else _COMPLETION if "prompt" in value else "" for value in values}
    if len(kinds) != 1 or "" in kinds:
        raise InputError(f"--requests-file: {path}: each line needs `messages`, or each `prompt`")
    return Bodies([_json({**value, **_STREAM}) for value in values], JSON, kinds.pop(), about)


def sampled(rows: int, seed: int) -> list[int]:
    """Which rows to ask for, in which order: COUNT at most, each once."""
    return random.Random(seed).sample(range(rows), min(rows, COUNT))


def fitted(bodies: Bodies) -> Bodies:
    """As many as fit into memory twice. Raises InputError where that is none."""
    whole, kept = 0, []
    for body in bodies.content:
        whole += len(body)
        if whole > _WHOLE_BYTES:
            break
        kept.append(body)
    if not kept:
        raise InputError(f"the first request has {len(bodies.content[0])} bytes; {_WHOLE_BYTES} are taken at most")
    return Bodies(kept, bodies.content_type, bodies.path, bodies.about)


def named(body: bytes, model: str) -> bytes:
    """A language model's request with the model's name in it."""
    return _json({"model": model, **{key: value for key, value in json.loads(body).items() if key != "model"}})


# Usage comes with the last event, and counts the tokens.
_STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def _asked(prompts: list[Any], about: str, tokens: int) -> Bodies:
    # Answers of one length, greedy: two servers do the same work. vLLM and SGLang know ignore_eos.
    common = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, **_STREAM}
    chat = isinstance(prompts[0], list)
    key, path = ("messages", _CHAT) if chat else ("prompt", _COMPLETION)
    return Bodies([_json({key: prompt, **common}) for prompt in prompts], JSON, path, about)


def _prompt(row: Mapping[str, Any]) -> Any:
    """The turns before the last answer; or the prompt; or the first words of a text."""
    if row.get("messages"):
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        while len(turns) > 1 and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns
    return str(row.get("prompt") or " ".join(str(row["text"]).split()[:32]))


def _pair(row: Mapping[str, Any]) -> Any:
    second = row.get("text_pair")
    return str(row["text"]) if second is None else {"text": str(row["text"]), "text_pair": str(second)}


def _sentence(generator: random.Random) -> str:
    words = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "it", "rains", "again")
    return " ".join(generator.choices(words, k=generator.randint(6, 24)))


def _picture(generator: random.Random) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.frombytes("RGB", (64, 64), generator.randbytes(64 * 64 * 3)).resize((224, 224)).save(stream, "JPEG")
    return stream.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
