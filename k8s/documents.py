"""Plain Python as YAML that every reader takes for the same: kubectl's (1.1, with Go's numbers) and Shoal's (1.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Text that any of them would take for a number is quoted; text of several lines stands as it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # the same dictionary twice is written twice: anchors are for people


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
# PyYAML would leave "1e3" and "0o17" bare, and a model may be called 1e3.
_NUMBER = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?0[oxb][0-9a-fA-F_]+$")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def to_yaml(documents: Sequence[Any]) -> str:
    """Documents as one text, `---` between them, keys in their order."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
