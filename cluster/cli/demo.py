"""`shoal demo`: the main job on a real model and real data, then a summary and a clean stop."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table

if TYPE_CHECKING:
    from cluster.cli.stages import Journal

FILE = Path(__file__).parent.parent.parent / "train" / "examples" / "spam.yaml"


@click.command()
@click.option("--keep", is_flag=True, help="Leave the model serving; stop it with SHOAL_HOME=.shoal/demo shoal down.")
@click.option("--samples", "into", default="samples", show_default=True, help="Folder of the model and the mails.")
@as_json
def command(keep: bool, into: str, as_json: bool) -> None:
    """From data to an answering URL, on this machine: fine-tune MiniLM on the SpamAssassin mails, judge it on 1,000 it
    never saw, register it, serve it, ask it through huggingface_hub's client, and stop.

    Its state is in .shoal/demo, emptied at the start.
    """
    from cluster import connect
    from cluster.cli import stages, up
    from cluster.spec import load

    home = Path(".shoal/demo").resolve()
    os.environ["SHOAL_HOME"] = str(home)
    connect.down()
    shutil.rmtree(home, ignore_errors=True)
    folder = Path(into).resolve()
    journal = stages.Journal()
    with Output(as_json=as_json) as out, Peak(journal) as peak:
        with journal.stage("samples"):
            _fetch(folder, out)
        spec = load(FILE, _overrides(folder))
        try:
            result = up.run(spec, out, journal)
            with journal.stage("ask"):
                asked = _ask(result["url"], folder / "data" / "spam" / "test.csv")
        finally:
            if not keep:
                with journal.stage("down"):
                    connect.down()
        out.say(_story(result, asked, journal, peak))
        summary = {key: result[key] for key in ("name", "url", "version", "metrics")}
        summary |= {"asked": asked, "seconds": journal.seconds, "peak_memory_mb": peak.megabytes}
        out.as_json = True  # the last line is for machines, always
        out.result(summary)


class Peak:
    """Most memory in use on this machine above what was in use at the start, in MiB, by stage; read twice a second."""

    def __init__(self, journal: Journal) -> None:
        self.megabytes: dict[str, int] = {}
        self._journal = journal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        start = psutil.virtual_memory().available
        while not self._over.wait(0.5):
            used = (start - psutil.virtual_memory().available) >> 20
            stage = self._journal.now
            self.megabytes[stage] = max(used, self.megabytes.get(stage, 0))


def _fetch(folder: Path, out: Output) -> None:
    from cluster import samples

    samples.fetch(["minilm", "spam"], into=folder, progress=out.progress)


def _overrides(folder: Path) -> list[str]:
    """The example's paths, as they are in this samples folder; what it says of rows stays."""
    from cluster.spec import load

    written = load(FILE).data
    rows = (written.train or "").partition("#")[2]
    return [
        f"model={folder / 'models' / 'minilm'}",
        f"data.train={folder / 'data' / 'spam' / 'train.csv'}{f'#{rows}' if rows else ''}",
        f"data.test={folder / 'data' / 'spam' / 'test.csv'}",
    ]


def _ask(url: str, test: Path) -> list[dict[str, Any]]:
    """Three spam and three ham mails of the held-out ones, through the unmodified client."""
    import csv

    from huggingface_hub import InferenceClient

    csv.field_size_limit(1 << 24)
    client = InferenceClient(model=url)
    answers, wanted = [], {"spam": 3, "ham": 3}
    with test.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if wanted.get(row["label"], 0) == 0:
                continue
            wanted[row["label"]] -= 1
            top = client.text_classification(row["text"])[0]
            answers.append(
                {"text": row["text"][:60], "is": row["label"], "said": top.label, "score": round(top.score, 4)}
            )
            if not any(wanted.values()):
                break
    return answers


def _story(result: dict[str, Any], asked: list[dict[str, Any]], journal: Journal, peak: Peak) -> str:
    mails = [[" ".join(row["text"].split()), row["is"], row["said"], row["score"]] for row in asked]
    times = [[name, f"{seconds:.1f}", peak.megabytes.get(name, 0)] for name, seconds in journal.seconds.items()]
    return "\n".join(
        [
            "",
            table(["mail", "is", "said", "score"], mails),
            "",
            table(["stage", "seconds", "peak MiB"], times),
            "",
            f"url       {result['url']}",
            f"version   {result['version']}",
            f"accuracy  {result['metrics']['accuracy']:.4f} on mails it never saw",
            f"total     {sum(journal.seconds.values()):.0f} s",
            "",
        ]
    )
