"""transformers imported without what a copy of a model has no use for: close to half of a cold start's CPU time.

transformers imports scikit-learn and scipy (for assisted generation and for losses), torch.distributed's sharding (for
training) and torch's compiler (for two marks on functions) wherever they are installed. Here they are missing to it
while its base is imported, as on a machine without them, and there for everybody else. Whatever else it may come to
want of the compiler it gets: then only the start is slow, and the test of this module fails.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_MISSING = ("is_sklearn_available", "is_scipy_available", "is_torch_distributed_available")
_COMPILER, _MASKS = "torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op"
_LOCK = threading.Lock()


def import_transformers() -> None:
    """Import what all of transformers' models stand on; `from transformers import ...` is quick then. For processes
    that only answer: whoever trains imports transformers whole. Does nothing where that has been done."""
    with _LOCK:
        if "transformers.modeling_utils" in sys.modules:
            return
        with _without_probes(), _without_compiler():
            importlib.import_module("transformers.modeling_utils")
            importlib.import_module("transformers.models.auto.modeling_auto")


@contextmanager
def _without_probes() -> Iterator[None]:
    """transformers' modules ask once, at import, by functions that they take from these two."""
    places = [importlib.import_module(f"transformers.utils{name}") for name in ("", ".import_utils")]
    before = [(place, name, getattr(place, name)) for place in places for name in _MISSING if hasattr(place, name)]
    for place, name, _ in before:
        setattr(place, name, _no)
    try:
        yield
    finally:
        for place, name, probe in before:
            setattr(place, name, probe)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """In place of torch._dynamo, where nobody has imported it yet: marks on functions that it is to leave alone are not
    made, for nothing is compiled here, and its one other part is imported when it is used."""
    if _COMPILER in sys.modules:
        yield
        return
    sys.modules[_COMPILER] = _Compiler(_COMPILER)
    sys.modules[_MASKS] = masks = ModuleType(_MASKS)
    masks.TransformGetItemToIndex = _transform_get_item_to_index  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        _Compiler.leave()


class _Compiler(ModuleType):
    """Stands for torch._dynamo until something of it is wanted that is not here."""

    __file__ = None  # pyright: ignore[reportAssignmentType] - inspect asks every module for it

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *arguments: Any, **options: Any) -> Any:
        return fn if fn is not None else _Compiler.disable

    @staticmethod
    def allow_in_graph(fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn

    assume_constant_result = allow_in_graph

    @staticmethod
    def leave() -> None:
        """Make room for the real one."""
        if isinstance(sys.modules.get(_COMPILER), _Compiler):
            del sys.modules[_COMPILER], sys.modules[_MASKS]
            vars(sys.modules["torch"]).pop("_dynamo", None)

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(_COMPILER), name)


def _transform_get_item_to_index() -> Any:
    """A context manager for masks that are made by torch.vmap."""
    return importlib.import_module(_MASKS).TransformGetItemToIndex()


def _no() -> bool:
    return False
