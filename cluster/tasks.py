"""The table of tasks: one row says what a task needs of data, how it is judged, what a request and an answer look like.

A row names its code as "module:Class". Whether a task can be trained or served is read off the code that is really
there, without importing it, so the support matrix cannot lie.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.errors import InputError

if TYPE_CHECKING:
    from cluster.spec import Spec  # every copy of a model reads this table, and none a file

Modality = Literal["text", "vision", "audio", "tabular", "multimodal", "video"]


@dataclass(frozen=True)
class Task:
    """One row. `columns` maps the role of a column to whether it is required; `trainer` and `server` are
    "module:Class" or empty."""

    name: str
    modality: Modality
    request: str
    response: str
    columns: dict[str, bool]
    metrics: tuple[str, ...] = ()
    trainer: str = ""
    server: str = ""

    @property
    def trainable(self) -> bool:
        return _exists(self.trainer)

    @property
    def servable(self) -> bool:
        return _exists(self.server)

    def about(self) -> str:
        """One line: what goes in, what comes out, and what can be done with it today."""
        can = {(True, True): "trained and served", (True, False): "trained", (False, True): "served"}
        today = can.get((self.trainable, self.servable))
        state = f"can be {today}" if today else "not here yet"
        return f"{self.name} ({self.modality}): {self.request} -> {self.response}; {state}"


_CLASSES = "[{label, score}]"
_TEXT = "[{generated_text}]"
_METRICS = ("accuracy", "precision", "recall", "f1")
_BOXES = "[{label, score, box}]"

_ROWS = (
    Task(
        "text-classification",
        "text",
        "{inputs: text | [text], parameters}",
        "[[{label, score}]]",
        {"text": True, "text_pair": False, "label": True},
        _METRICS,
        trainer="train.tasks.text:TextClassification",
        server="serve.tasks.text:TextClassification",
    ),
    Task(
        "token-classification",
        "text",
        "{inputs: text}",
        "[{entity_group, score, word, start, end}]",
        {"tokens": True, "tags": True},
        ("f1",),
    ),
    Task(
        "question-answering",
        "text",
        "{inputs: {question, context}}",
        "{answer, score, start, end}",
        {"question": True, "context": True, "answers": True},
        ("exact_match", "f1"),
    ),
    Task("summarization", "text", "{inputs: text}", "[{summary_text}]", {"text": True, "summary": True}, ("rouge",)),
    Task(
        "translation",
        "text",
        "{inputs: text}",
        "[{translation_text}]",
        {"source": True, "target": True},
        ("sacrebleu",),
    ),
    Task(
        "text-generation",
        "text",
        "OpenAI chat or completions",
        "OpenAI",
        {"text": False, "prompt": False, "completion": False, "messages": False},
        ("perplexity",),
        trainer="train.tasks.generation:TextGeneration",
        server="serve.llm:Llm",
    ),
    Task(
        "fill-mask",
        "text",
        "{inputs: text with a mask}",
        "[{token_str, score, sequence}]",
        {"text": True},
        ("perplexity",),
    ),
    Task(
        "zero-shot-classification",
        "text",
        "{inputs: text, parameters: {candidate_labels}}",
        _CLASSES,
        {"text": True, "label": True},
        _METRICS,
    ),
    Task("feature-extraction", "text", "{inputs: text | [text]}", "[[number]]", {"text": True}),
    Task(
        "sentence-similarity",
        "text",
        "{inputs: {source_sentence, sentences}}",
        "[number]",
        {"first": True, "second": True, "score": False},
        ("spearman",),
    ),
    Task(
        "text-ranking",
        "text",
        "{query, texts}",
        "[{index, score}]",
        {"query": True, "text": True, "score": True},
        ("ndcg",),
    ),
    Task(
        "table-question-answering",
        "multimodal",
        "{inputs: {query, table}}",
        "{answer, cells}",
        {"question": True, "table": True, "answer": True},
        ("exact_match",),
    ),
    Task(
        "document-question-answering",
        "multimodal",
        "{inputs: {question, image}}",
        "[{answer, score}]",
        {"image": True, "question": True, "answer": True},
        ("anls",),
    ),
    Task(
        "image-classification",
        "vision",
        "picture bytes, or {inputs: base64, parameters}",
        _CLASSES,
        {"image": True, "label": True},
        _METRICS,
        trainer="train.tasks.vision:ImageClassification",
        server="serve.tasks.vision:ImageClassification",
    ),
    Task("object-detection", "vision", "picture bytes", _BOXES, {"image": True, "objects": True}, ("map",)),
    Task(
        "image-segmentation",
        "vision",
        "picture bytes",
        "[{label, score, mask}]",
        {"image": True, "mask": True},
        ("iou",),
    ),
    Task("depth-estimation", "vision", "picture bytes", "picture bytes", {"image": True, "depth": True}, ("rmse",)),
    Task(
        "zero-shot-image-classification",
        "multimodal",
        "{inputs: base64, parameters: {candidate_labels}}",
        _CLASSES,
        {"image": True, "label": True},
        _METRICS,
    ),
    Task(
        "zero-shot-object-detection",
        "multimodal",
        "{inputs: base64, parameters: {candidate_labels}}",
        _BOXES,
        {"image": True, "objects": True},
        ("map",),
    ),
    Task("image-to-text", "multimodal", "picture bytes", _TEXT, {"image": True, "text": True}, ("rouge",)),
    Task(
        "visual-question-answering",
        "multimodal",
        "{inputs: {question, image}}",
        "[{answer, score}]",
        {"image": True, "question": True, "answer": True},
        ("accuracy",),
    ),
    Task(
        "image-text-to-text", "multimodal", "OpenAI chat with pictures", "OpenAI", {"messages": True}, ("perplexity",)
    ),
    Task("text-to-image", "vision", "{inputs: text, parameters}", "picture bytes", {"text": True, "image": True}),
    Task("image-to-image", "vision", "{inputs: base64, parameters}", "picture bytes", {"image": True, "target": True}),
    Task(
        "inpainting",
        "vision",
        "{inputs: base64, parameters: {mask_image}}",
        "picture bytes",
        {"image": True, "mask": True},
    ),
    Task("virtual-try-on", "vision", "{inputs: {person, garment}}", "picture bytes", {"person": True, "garment": True}),
    Task("text-to-video", "video", "{inputs: text, parameters}", "video bytes", {"text": True, "video": True}),
    Task("image-to-video", "video", "{inputs: base64, parameters}", "video bytes", {"image": True, "video": True}),
    Task("video-classification", "video", "video bytes", _CLASSES, {"video": True, "label": True}, _METRICS),
    Task(
        "automatic-speech-recognition",
        "audio",
        "sound bytes",
        "{text, chunks}",
        {"audio": True, "text": True},
        ("wer", "cer"),
    ),
    Task("text-to-speech", "audio", "{inputs: text, parameters}", "sound bytes", {"text": True, "audio": True}),
    Task(
        "voice-cloning",
        "audio",
        "{inputs: text, parameters: {reference_audio}}",
        "sound bytes",
        {"text": True, "audio": True},
    ),
    Task("audio-classification", "audio", "sound bytes", _CLASSES, {"audio": True, "label": True}, _METRICS),
    Task(
        "zero-shot-audio-classification",
        "audio",
        "{inputs: base64, parameters: {candidate_labels}}",
        _CLASSES,
        {"audio": True, "label": True},
        _METRICS,
    ),
    Task("audio-to-audio", "audio", "sound bytes", "[{label, content-type, blob}]", {"audio": True, "target": True}),
    Task(
        "time-series-forecasting",
        "tabular",
        "{inputs: [number], parameters: {prediction_length}}",
        "{mean, quantiles}",
        {"target": True, "timestamp": False},
        ("mase",),
    ),
    Task("anomaly-detection", "tabular", "{table}", "[{anomaly, score}]", {"features": False, "label": False}, ("f1",)),
    Task(
        "tabular-classification",
        "tabular",
        "{table: {column: [value]}}",
        "[label]",
        {"label": True, "features": False},
        _METRICS,
        trainer="train.tasks.tabular:TabularClassification",
        server="serve.tasks.tabular:TabularClassification",
    ),
    Task(
        "tabular-regression",
        "tabular",
        "{table: {column: [value]}}",
        "[number]",
        {"label": True, "features": False},
        ("rmse", "r2"),
    ),
    Task("clustering", "tabular", "{table: {column: [value]}}", "[cluster]", {"features": False}, ("silhouette",)),
    Task(
        "content-moderation",
        "text",
        "OpenAI moderations; {inputs: text}",
        "OpenAI; [[{label, score}]]",
        {"text": True, "label": True},
        _METRICS,
    ),
    Task("retrieval-augmented-generation", "multimodal", "OpenAI chat", "OpenAI, with sources", {"text": True}),
)
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}


def task_of(spec: Spec) -> Task:
    """The row of a spec's task. Raises InputError, naming the nearest task."""
    return get(spec.task)


def get(name: str) -> Task:
    """A row by name. Raises InputError, naming the nearest task."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`shoal tasks` lists them"
    raise InputError(f"task: {name!r} is not a task; {hint}")


def trainable(spec: Spec) -> Task:
    """The row, where it can be trained. Raises InputError with those that can."""
    return _supported(task_of(spec), "trained", [row.name for row in _ROWS if row.trainable], task_of(spec).trainable)


def servable(spec: Spec) -> Task:
    """The row, where it can be served. Raises InputError with those that can."""
    return _supported(task_of(spec), "served", [row.name for row in _ROWS if row.servable], task_of(spec).servable)


def markdown() -> str:
    """The support matrix as a Markdown table: a row a task, what can be trained and served, request and answer."""
    lines = ["| task | modality | train | serve | request | answer |", "|---|---|---|---|---|---|"]
    for row in _ROWS:
        cells = (row.name, row.modality, "yes" if row.trainable else "", "yes" if row.servable else "")
        code = (f"`{text}`".replace("|", r"\|") for text in (row.request, row.response))
        lines.append(f"| {' | '.join((*cells, *code))} |")
    return "\n".join(lines) + "\n"


def _supported(row: Task, verb: str, able: list[str], yes: bool) -> Task:
    if not yes:
        raise InputError(f"task: {row.name} cannot be {verb} yet; these can: {', '.join(able)}")
    return row


@cache
def _exists(target: str) -> bool:
    """Whether "package.module:Class" is in this installation, read from its source: nothing is imported."""
    module, _, name = target.partition(":")
    if not name:
        return False
    place = Path(__file__).parent.parent.joinpath(*module.split("."))
    file = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    if file is None:
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in body)
