"""What `shoal demo` shows: which file on which samples, what is asked of the model then, and how it is told."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.cli.output import Output, table
from cluster.spec import load

_ROOT = Path(__file__).parent.parent.parent
_SAMPLES = "../../samples/"  # how an example names them


@dataclass(frozen=True)
class Story:
    """One of them. `ask` is given what `shoal up` found and the folder of the samples, and returns rows of text, is,
    said, score; `then` is what comes after, each a name and a function of the output, the result and the samples that
    returns what it found."""

    file: Path
    samples: tuple[str, ...]
    metric: str
    words: str
    columns: tuple[str, ...]
    ask: Callable[[dict[str, Any], Path], list[dict[str, Any]]]
    then: tuple[tuple[str, Callable[[Output, dict[str, Any], Path], dict[str, Any]]], ...] = ()
    watched: bool = False

    def overrides(self, samples: Path) -> list[str]:
        """The example's paths, as they are in this samples folder; what it says of rows stays."""
        spec = load(self.file)
        named = {"model": spec.model, "data.train": spec.data.train, "data.test": spec.data.test}
        found = {key: text for key, text in named.items() if text and text.startswith(_SAMPLES)}
        return [f"{key}={samples / text.removeprefix(_SAMPLES)}" for key, text in found.items()]

    def told(self, result: dict[str, Any], asked: list[dict[str, Any]]) -> str:
        """What was asked and what came of it, for a person."""
        rows = [[" ".join(str(row[column]).split())[:70] for column in self.columns] for row in asked]
        return "\n".join(
            [table(list(self.columns), rows), "", f"{self.metric} {result['metrics'][self.metric]:.4f} {self.words}"]
        )


def _mails(result: dict[str, Any], samples: Path) -> list[dict[str, Any]]:
    """Three spam and three ham mails of the held-out ones, through huggingface_hub's unmodified client."""
    from huggingface_hub import InferenceClient

    csv.field_size_limit(1 << 24)
    client = InferenceClient(model=result["url"])
    answers, wanted = [], {"spam": 3, "ham": 3}
    with (samples / "data" / "spam" / "test.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if wanted.get(row["label"], 0) == 0:
                continue
            wanted[row["label"]] -= 1
            top = client.text_classification(row["text"])[0]
            answers.append(
                {"mail": row["text"][:60], "is": row["label"], "said": top.label, "score": round(top.score, 4)}
            )
            if not any(wanted.values()):
                break
    return answers


def _words(result: dict[str, Any], samples: Path) -> list[dict[str, Any]]:
    """Four held-out words, asked of the tuned model and of its untouched base through OpenAI's unmodified client, one
    answer of each streamed."""
    from openai import OpenAI

    parts = urlsplit(result["url"])
    client = OpenAI(base_url=f"{parts.scheme}://{parts.netloc}/v1", api_key="none")
    answers = []
    for line in (samples / "data" / "definitions" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:4]:
        question, answer = (turn["content"] for turn in json.loads(line)["messages"][-2:])
        said = {}
        for name in (result["name"], f"{result['name']}:base"):
            asked: Any = {"model": name, "messages": [{"role": "user", "content": question}]}
            stream = client.chat.completions.create(**asked, max_tokens=40, temperature=0, stream=True)
            said[name] = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        tuned, base = said.values()
        answers.append({"question": question, "dictionary": answer, "tuned": tuned, "base": base})
    return answers


def watch(out: Output) -> None:
    """Start Prometheus over what is to come, where there is one on this machine."""
    from cluster.monitoring import server
    from cluster.settings import home, settings

    if shutil.which("prometheus") is None:
        return out.say("watch: prometheus is not on PATH, so nothing watches (apt-get install prometheus brings it)")
    server.start(home(), settings().prometheus, out.progress)
    return None


def _watched(out: Output, result: dict[str, Any], samples: Path) -> dict[str, Any]:
    """Ask on, until Prometheus has seen some of it: which panels of the model's dashboard have had data."""
    from cluster.monitoring import live, server
    from cluster.settings import home

    if (found := server.running(home())) is None:
        return {}
    over = threading.Event()

    def go_on_asking() -> None:
        while not over.wait(1):
            _words(result, samples)

    asker = threading.Thread(target=go_on_asking)
    asker.start()
    try:
        panels = live.wait(found.url, "model", model=result["name"], since=found.created, progress=out.progress)
    finally:
        over.set()
        asker.join()
    shown = [name for name, lives in panels.items() if lives]
    out.say(f"watch: {len(shown)} of {len(panels)} panels of the model's dashboard have data: {', '.join(shown)}")
    return {"panels": len(panels), "live": len(shown)}


def _rendered(out: Output, result: dict[str, Any], samples: Path) -> dict[str, Any]:
    """The same file as Kubernetes manifests; on a cluster it names the model by its Hub id."""
    from cluster.settings import home
    from cluster.settings.kubernetes import Kubernetes
    from k8s.check import check
    from k8s.documents import to_yaml
    from k8s.render import render

    kube = Kubernetes(model_cache="shoal")
    cache = "/var/lib/shoal/data/definitions"
    hub = "model=HuggingFaceTB/SmolLM2-135M-Instruct"
    spec = load(ASSISTANT.file, [hub, f"data.train={cache}/train.jsonl", f"data.test={cache}/test.jsonl"])
    manifests = render([spec], kube)
    check(manifests, None)
    file = home() / "assistant.k8s.yaml"
    file.write_text(to_yaml(manifests), encoding="utf-8")
    kinds = [manifest["kind"] for manifest in manifests]
    out.say(f"kubernetes: {', '.join(kinds)} in {file}")
    return {"kinds": kinds, "file": str(file)}


SPAM = Story(
    file=_ROOT / "train" / "examples" / "spam.yaml",
    samples=("minilm", "spam"),
    metric="accuracy",
    words="on mails it never saw",
    columns=("mail", "is", "said", "score"),
    ask=_mails,
)
ASSISTANT = Story(
    file=_ROOT / "serve" / "examples" / "assistant.yaml",
    samples=("smollm2", "definitions"),
    metric="perplexity",
    words="on definitions it never saw",
    columns=("question", "dictionary", "tuned", "base"),
    ask=_words,
    then=(("watch", _watched), ("render", _rendered)),
    watched=True,
)
STORIES = {"spam": SPAM, "assistant": ASSISTANT}
