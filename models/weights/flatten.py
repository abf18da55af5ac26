"""Nested containers as one flat table: the names of what is inside are joined by dots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerdiff.errors import UserError, require

from .inert import Global, LazyTensor, Opaque, Table
from .raw import Budget, shown

__all__ = ["Members", "flatten"]

#: Names of the parameters and buffers of a TorchScript class; None where its code does not say.
Members = Callable[[Global], frozenset[str] | None]

_DEEPEST = 64
_LONGEST = 1024
_MOST_VALUES = 10_000
_VISIT, _NAME = 64, 300  # bytes of memory, rounded up


def flatten(
    tree: object, path: Path, budget: Budget, members: Members | None = None
) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """Return the tensors of a pickle's object, and the numbers and short texts beside them, by dotted name.

    Args:
        tree: What `unpickle` gave: dictionaries, lists and tuples are entered, other objects ignored.
        path: The file, for messages.
        budget: Pays for each visit, as shared containers may unfold without end.
        members: Given for a TorchScript archive, whose modules are entered too.

    Raises:
        UserError: Containers are nested too deep or contain themselves, or two tensors have one name.
    """
    walk = _Walk(path, budget, members)
    walk.enter("", tree, 0)
    return walk.tensors, walk.values


@dataclass
class _Walk:
    path: Path
    budget: Budget
    members: Members | None
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def enter(self, name: str, node: object, depth: int) -> None:
        self.budget.spend(_VISIT)
        if isinstance(node, LazyTensor):
            require(name not in self.tensors, f"{self.path} has two tensors named {shown(name)}; save it again")
            self.budget.spend(_NAME + 4 * len(name))
            self.tensors[name] = node
        elif isinstance(node, (bool, int, float, str)):
            self._keep(name, node)
        else:
            items = self._items(node)
            if items and depth >= _DEEPEST:
                raise UserError(f"{self.path} nests containers deeper than {_DEEPEST}; it is no file of weights")
            for key, value in items:
                if _is_short(key) and isinstance(key, (str, int)):
                    self.enter(f"{name}.{key}" if name else str(key), value, depth + 1)

    def _items(self, node: object) -> Any:
        if isinstance(node, Table):
            return node.pairs
        if isinstance(node, (list, tuple)):
            return enumerate(node) if node else ()
        if self.members and isinstance(node, Opaque) and isinstance(node.state, Table) and node.kind:
            names = self.members(node.kind) if node.kind.module.startswith("__torch__") else frozenset()
            return [
                (key, value)
                for key, value in node.state.pairs
                if not isinstance(value, LazyTensor) or names is None or key in names
            ]
        return ()

    def _keep(self, name: str, value: bool | int | float | str) -> None:
        if _is_short(value) and len(self.values) < _MOST_VALUES:
            self.budget.spend(_NAME + 4 * len(name))
            self.values[name] = value


def _is_short(value: object) -> bool:
    return len(value) <= _LONGEST if isinstance(value, str) else not isinstance(value, int) or abs(value) < 2**63
