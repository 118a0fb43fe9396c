"""`shoal demo`: the main job on a real model and real data, then a summary and a clean stop."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table

if TYPE_CHECKING:
    from cluster.cli.stages import Journal


@click.command()
@click.argument("story", type=click.Choice(["spam", "assistant"]), default="spam")
@click.option("--keep", is_flag=True, help="Leave the model serving; stop it with SHOAL_HOME=.shoal/demo shoal down.")
@click.option("--samples", "into", default="samples", show_default=True, help="Folder of the model and the data.")
@as_json
def command(story: str, keep: bool, into: str, as_json: bool) -> None:
    """From data to an answering URL, on this machine, and a clean stop.

    \b
      shoal demo              fine-tune MiniLM on the SpamAssassin mails, judge it on 1,000 it never saw, register it,
                              serve it, ask it through huggingface_hub's client
      shoal demo assistant    tune SmolLM2 with LoRA under DeepSpeed's ZeRO-2 on two workers, gate it on perplexity,
                              serve it on vLLM, ask it through OpenAI's client, watch it with Prometheus, and render
                              it for Kubernetes

    Its state is in .shoal/demo, emptied at the start.
    """
    from cluster import connect, samples
    from cluster.cli import stages, up
    from cluster.cli.stories import STORIES, watch
    from cluster.monitoring import server
    from cluster.spec import load

    chosen = STORIES[story]
    home = Path(".shoal/demo").resolve()
    os.environ["SHOAL_HOME"] = str(home)
    server.stop(home)
    connect.down()
    shutil.rmtree(home, ignore_errors=True)
    folder = Path(into).resolve()
    journal = stages.Journal()
    with Output(as_json=as_json) as out, Peak(journal) as peak:
        with journal.stage("samples"):
            samples.fetch(list(chosen.samples), into=folder, progress=out.progress)
        spec = load(chosen.file, chosen.overrides(folder))
        more = {}
        try:
            if chosen.watched:
                watch(out)
            result = up.run(spec, out, journal)
            with journal.stage("ask"):
                asked = chosen.ask(result, folder)
            for name, step in chosen.then:
                with journal.stage(name):
                    more[name] = step(out, result, folder)
        finally:
            if not keep:
                with journal.stage("down"):
                    server.stop(home)
                    connect.down()
        times = [[name, f"{seconds:.1f}", peak.megabytes.get(name, 0)] for name, seconds in journal.seconds.items()]
        out.say(f"\n{chosen.told(result, asked)}\n")
        out.say(table(["stage", "seconds", "peak MiB"], times))
        out.say(f"\nurl       {result['url']}\nversion   {result['version']}")
        out.say(f"total     {sum(journal.seconds.values()):.0f} s\n")
        summary = {key: result[key] for key in ("name", "url", "version", "metrics")} | {"asked": asked} | more
        summary |= {"seconds": journal.seconds, "peak_memory_mb": peak.megabytes}
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
