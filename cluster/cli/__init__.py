"""The command `shoal`: one verb a module, imported when it is called and not before.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import json
import sys
import traceback
from collections.abc import Sequence

import click

from cluster.errors import RunFailed, ShoalError

# Verb: what `shoal --help` says of it. The module cluster.cli.<verb> holds the click command `command`.
VERBS = {
    "init": "Write a commented file to start from",
    "schema": "Print the JSON Schema of a model's file",
    "tasks": "List the tasks, and which can be trained and served",
    "samples": "Fetch small real models and data to try things on",
    "plan": "Say what a file would do and cost, and do nothing",
    "train": "Fine-tune the model of a file",
    "tune": "Sweep over keys of a file, and register the best trial",
    "evaluate": "Judge the trained model, and register it where it passes its gate",
    "serve": "Serve the models of one or more files",
    "up": "All of it: plan, train, evaluate, register, serve; only what changed",
    "predict": "Ask a model that is served",
    "bench": "Load a served model and measure it, alone or against another server",
    "status": "What is running: the cluster, runs and endpoints",
    "logs": "Print the logs of a run, a model or the cluster",
    "stop": "End a run on a cluster (`--on`)",
    "down": "Stop one model, or everything",
    "models": "List versions, show lineage, promote, roll back",
    "keys": "Make, list, rotate and revoke keys for the gateway",
    "usage": "What tenants and models used, and what it cost",
    "ui": "Open the page of all runs (MLflow)",
    "k8s": "Write, apply, watch and delete a file's Kubernetes manifests (KubeRay)",
    "monitor": "Watch the cluster of this home with Prometheus, and print its alert rules",
    "dashboards": "Bring the dashboards into Grafana",
    "demo": "Show the whole chain on a real model and real data",
    "doctor": "Check this machine and say what to mend",
}

HELP = """Train, evaluate and serve Hugging Face models on Ray, from one YAML file a model.

\b
  shoal init text-classification > reviews.yaml    a file to start from
  shoal plan reviews.yaml                          what it would do and cost
  shoal up reviews.yaml train.epochs=1             from data to a URL
  shoal down                                       stop everything

Any key of the file can be set after it as key=value. State lives in $SHOAL_HOME (default: .shoal)."""


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            near = difflib.get_close_matches(cmd_name, VERBS, n=1)
            raise click.UsageError(
                f"{cmd_name!r} is no verb; did you mean {near[0]}?" if near else f"{cmd_name!r} is no verb", ctx
            )
        return importlib.import_module(f"cluster.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal", prog_name="shoal")
def shoal() -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every ShoalError is one message, no traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = shoal.main(words, prog_name="shoal", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except ShoalError as error:
        _fail(str(error), error.exit_code, words)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\n{context.get_usage()}\n`{context.command_path} --help` says more" if context else ""
        _fail(error.format_message() + hint, 2, words)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130, words)
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _fail(_unexpected(error), 1, words)
        _fail(str(RunFailed(f"{error.filename or 'the disk'}: no space left; free some and run it again")), 1, words)
    except Exception as error:
        _fail(_unexpected(error), 1, words)


def _fail(message: str, code: int, words: Sequence[str]) -> None:
    sys.stdout.flush()
    if "--json" in words:
        click.echo(json.dumps({"error": message, "exit_code": code}))
    click.echo(f"shoal: {message}", err=True)
    sys.exit(code)


def _unexpected(error: BaseException) -> str:
    """A fault of ours: the traceback goes to a file, so that a report can hold it."""
    from cluster.settings import home

    try:
        file = home() / "last-error.txt"
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"the traceback is in {file}"
    except OSError:
        where = "".join(traceback.format_exception(error))
    return f"this should not have happened: {type(error).__name__}: {error}\n{where}"
