"""Everything about an ablation that its tables leave out, JSON-able."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerdiff.scripts.arguments import plain

from .plan import Plan
from .tables import Measured

__all__ = ["facts_of"]


def facts_of(plan: Plan, rows: Sequence[Measured]) -> dict[str, Any]:
    """Return the settings, and for each point its identity, scores, evaluations and seconds."""
    return {
        "title": plan.title,
        "method": plan.method,
        "base": plain(plan.base),
        "axes": [{"fields": list(axis.fields), "values": plain(axis.values)} for axis in plan.axes],
        "tradeoff": plan.tradeoff and list(plan.tradeoff),
        "task": plan.task,
        "cases": plan.cases,
        "seeds": list(plan.seeds),
        "points": [_point(row) for row in rows],
    }


def _point(row: Measured) -> dict[str, Any]:
    return {
        "changes": plain(row.point.changes),
        "key": row.cell.key if row.cell else None,
        "cell": row.cell.identity() if row.cell else None,
        "error": row.error,
        "evaluations": row.result.evaluations if row.result else None,
        "seconds": row.result.seconds if row.result else None,
        "scores": {name: [i.value, i.low, i.high] for name, i in row.intervals.items()},
    }
