"""From YAML text and `key=value` overrides to a Spec, or to one message with the key's place in the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cluster.errors import InputError
from cluster.spec.sections import Spec

MAX_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)


class _Yaml12(yaml.SafeLoader):
    """Safe YAML with 1.2's scalars: `5e-5` is a number, `no` and `on` are text, a key stands once."""


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
# An empty value has no first character to look its resolver up by.
_Yaml12.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile("^$")))


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 16) if text.lower().startswith("0x") else int(text)


_Yaml12.add_constructor("tag:yaml.org,2002:int", _int)


def parse_yaml(text: str, *, where: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """YAML text as plain Python, and the line (from 1) of every key path. Raises InputError, naming `where`."""
    loader = _Yaml12(text)
    try:
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        if node is None:
            return None, lines
        _walk(node, (), lines, where)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        raise InputError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not YAML that can be read: {error}") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], where: str) -> None:
    """Note every key's line; refuse a key written twice, and aliases (a small file can unfold to gigabytes)."""
    seen: set[int] = set()

    def visit(node: yaml.Node, path: tuple[str, ...]) -> None:
        if id(node) in seen:
            line = node.start_mark.line + 1
            raise InputError(f"{where}:{line}: anchors and aliases (& and *) are not supported; write the value out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                name = str(getattr(key, "value", key))
                if name in keys:
                    raise InputError(f"{where}:{key.start_mark.line + 1}: {name} stands twice; keep one")
                keys.add(name)
                lines[(*path, name)] = key.start_mark.line + 1
                visit(value, (*path, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, str(index))] = value.start_mark.line + 1
                visit(value, (*path, str(index)))

    visit(node, path)


def load(file: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a model's file and apply `key=value` overrides (YAML values). Raises InputError with the place."""
    path = Path(file)
    return parse(read_text(path), overrides, where=str(file)).at(path.resolve().parent)


def read_text(path: Path) -> str:
    """A small text file. Raises InputError where it is missing, a folder, too large, binary or empty."""
    if not path.exists():
        raise InputError(f"{path}: no such file; `shoal init TASK > {path.name}` writes one to start from")
    if path.is_dir():
        raise InputError(f"{path}: a folder; name the YAML file in it")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a model's file has {MAX_BYTES} at most")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; a model's file is YAML") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise InputError(f"{path}: a binary file; a model's file is YAML")
    if not text.strip():
        raise InputError(f"{path}: empty; `shoal init TASK > {path.name}` writes one to start from")
    return text


def parse(text: str, overrides: Sequence[str] = (), *, where: str = "spec") -> Spec:
    """A Spec from YAML text and overrides. Raises InputError; relative paths start at the working directory."""
    tree, lines = parse_yaml(text, where=where)
    return build(Spec, tree, lines, overrides, where=where)


def build(
    model: type[Model],
    tree: Any,
    lines: dict[tuple[str, ...], int],
    overrides: Sequence[str] = (),
    *,
    where: str,
) -> Model:
    """Validate a tree as `model` after overrides; every fault is one line with its place. Raises InputError."""
    if not isinstance(tree, dict):
        raise InputError(f"{where}: the file must be a mapping of keys, not {_kind(tree)}")
    for override in overrides:
        _apply(tree, override)
    overridden = {tuple(o.partition("=")[0].split(".")) for o in overrides}
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = [_fault(model, dict(e), lines, overridden, where) for e in error.errors()]
        raise InputError("\n".join(dict.fromkeys(faults))) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: write key=value, e.g. train.epochs=1")
    value, _ = parse_yaml(text, where=key)
    *parents, last = key.split(".")
    place = tree
    for parent in parents:
        child = place.setdefault(parent, {})
        if child is None:
            child = place[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"{override!r}: {parent} holds {_kind(child)}, so it has no key {last}")
        place = child
    place[last] = value


def _fault(
    model: type[BaseModel],
    error: dict[str, Any],
    lines: dict[tuple[str, ...], int],
    overridden: set[tuple[str, ...]],
    where: str,
) -> str:
    loc = tuple(str(part) for part in error["loc"])
    # pydantic adds the branch of a union ("str", "list[str]") to the path: keep what the file has.
    while loc and loc not in lines and loc not in overridden and error["type"] != "missing" and len(loc) > 1:
        loc = loc[:-1]
    place = f"{where}:{lines[loc]}" if loc in lines and loc not in overridden else where
    if loc in overridden:
        place = "override"
    key = ".".join(loc)
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = _keys(model, loc[:-1])
            near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
            parent = ".".join(loc[:-1]) or "a model's file"
            hint = f"did you mean {near[0]}?" if near else f"{parent} has {', '.join(known)}"
            return f"{place}: {key}: unknown key; {hint}"
        case "missing":
            return f"{where}: {key}: missing; {_doc(model, loc)}"
        case "string_pattern_mismatch":
            return f"{place}: {key}: {value!r} does not fit; {_doc(model, loc)}"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{place}: {message if message.startswith(key) else f'{key}: {message}'}"
        case _:
            return f"{place}: {key}: {_short(value)}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _doc(model: type[BaseModel], path: tuple[str, ...]) -> str:
    for part in path[:-1]:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        model = inner
    field = model.model_fields.get(path[-1])
    return " ".join((field.description or "").split()) if field else ""


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
