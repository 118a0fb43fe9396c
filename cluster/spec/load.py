"""From YAML text and `key=value` overrides to a Spec, or to one message with the key's place in the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cluster.errors import InputError
from cluster.spec.sections import Spec

MAX_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)


class _Yaml12(yaml.SafeLoader):
    """Safe YAML with 1.2's scalars: `5e-5` is a number, `no` and `on` are text, a key stands once.

    Aliases are refused (a small file can unfold to gigabytes), and so are tags (`!!python/object` and the like).
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("anchors and aliases (& and *) are not supported; write the value out", event)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise _refused(f"the tag {tag} is not supported; write the plain value", event)
        return super().compose_node(parent, index)


def _refused(why: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)


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
    lines: dict[tuple[str, ...], int] = {}
    try:
        loader = _Yaml12(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, lines
            _note_lines(node, (), lines, where)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = f"{where}:{error.problem_mark.line + 1}" if error.problem_mark is not None else where
        raise InputError(f"{place}: not YAML that can be read: {_problem(error)}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where}: not YAML that can be read: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{where}: not YAML that can be read: nested too deep") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        return "a tab where spaces belong; indent with spaces"
    if "another document" in problem:
        return "a second document (---) begins here; a file holds one model"
    return problem


def _note_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], where: str) -> None:
    """Note every key's line; refuse a key written twice."""
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{where}:{line}: a key must be a word, not a list or a mapping")
            if name in keys:
                raise InputError(f"{where}:{line}: {'.'.join((*path, name))} stands twice; keep one")
            keys.add(name)
            lines[(*path, name)] = line
            _note_lines(value, (*path, name), lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, str(index))] = value.start_mark.line + 1
            _note_lines(value, (*path, str(index)), lines, where)


def load(file: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a model's file and apply `key=value` overrides (YAML values). Raises InputError with the place."""
    path = Path(file)
    text = read_text(path, remedy=f"`shoal init TASK > {path.name}` writes one to start from")
    return parse(text, overrides, where=str(file)).at(path.resolve().parent)


def read_text(path: Path, *, remedy: str) -> str:
    """A small text file. Raises InputError where it is missing, a folder, too large, binary or empty; `remedy` ends the
    message where there is nothing in it."""
    try:
        with path.open("rb") as file:
            # Never more than the limit, whatever the size says: a device has none and no end.
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name the YAML file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes; a YAML file of Shoal's is a page or two")
    if b"\0" in content:
        raise InputError(f"{path}: a binary file; write YAML as UTF-8 text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: empty; {remedy}")
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
        faults = [_fault(model, dict(e), tree, lines, overridden, where) for e in error.errors()]
        raise InputError("\n".join(dict.fromkeys(faults))) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"{override!r}: write key=value, e.g. train.epochs=1")
    value, _ = parse_yaml(text, where=repr(override))
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
    tree: dict[str, Any],
    lines: dict[tuple[str, ...], int],
    overridden: set[tuple[str, ...]],
    where: str,
) -> str:
    """One fault as "file:line: key: value: what to write instead"."""
    kind, value = error["type"], error["input"]
    loc = tuple(str(part) for part in error["loc"])
    if kind != "missing":
        loc = _in_tree(loc, tree)
    key = ".".join(loc)
    if any(loc[: len(path)] == path or (path[: len(loc)] == loc and loc not in lines) for path in overridden):
        place = "override"
    else:
        place = f"{where}:{lines[loc]}" if loc in lines else where
    match kind:
        case "extra_forbidden":
            known = list(_section(model, loc[:-1]).model_fields)
            near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
            parent = ".".join(loc[:-1]) or "the file"
            hint = f"did you mean {near[0]}?" if near else f"{parent} has {', '.join(known)}"
            return f"{place}: {key}: unknown key; {hint}"
        case "missing":
            return f"{where}: {key}: missing; {_doc(model, loc)}"
        case "model_type" | "model_attributes_type":
            known = ", ".join(_section(model, loc).model_fields)
            return f"{place}: {key}: {_short(value)}: must be a mapping of keys: {known}"
        case "string_pattern_mismatch":
            return f"{place}: {key}: {_short(value)} does not fit; {_doc(model, loc)}"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{place}: {message if message.startswith(key) else f'{key}: {message}'}"
        case _:
            return f"{place}: {key}: {_short(value)}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _in_tree(loc: tuple[str, ...], tree: Any) -> tuple[str, ...]:
    """The part of a path that the file has: pydantic adds the branch of a union ("list[str]") or "[key]" to it."""
    kept: list[str] = []
    for part in loc:
        if isinstance(tree, dict):
            tree = {str(key): child for key, child in tree.items()}
            if part not in tree:
                break
            tree = tree[part]
        elif isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            break
        kept.append(part)
    return tuple(kept)


def _section(model: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel]:
    """The model of the section at a path."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[part].annotation
        kinds = (annotation, *get_args(annotation))  # a section, or one that may be left out: "Tune | None"
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
        if get_origin(annotation) in (dict, list):  # of sections, each under a name that the user gave it, or a number
            next(parts, None)
    return model


def _doc(model: type[BaseModel], path: tuple[str, ...]) -> str:
    """A field's doc string on one line."""
    return " ".join((_section(model, path[:-1]).model_fields[path[-1]].description or "").split())


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
