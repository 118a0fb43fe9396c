"""The arguments that verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the last line is the result.")


def file_and_overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """FILE [KEY=VALUE]...: a model's file and what to set otherwise in it."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("file", metavar="FILE")(command)
