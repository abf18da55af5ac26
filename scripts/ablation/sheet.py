"""The contact sheet of a sweep: a row for each case, a column for each value, beside what was given and the truth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeVar

from steerdiff.scripts.arguments import plain
from steerdiff.scripts.gallery import Cell, Row, Section, draw_gallery
from steerdiff.train.benchmark import Case, draw_cases

from .plan import Plan
from .tables import Measured, shown

__all__ = ["contact_sheet", "sections_of"]

_MOST_ROWS, _MOST_COLUMNS, _MOST_SECTIONS = 6, 12, 6
_ZOOM = 2

T = TypeVar("T")


def contact_sheet(plan: Plan, rows: Sequence[Measured]) -> bytes:
    """Return the sheet as PNG; pictures are of the first seed."""
    picture = draw_gallery(plan.title, sections_of(plan, rows), zoom=_ZOOM)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sections_of(plan: Plan, rows: Sequence[Measured]) -> list[Section]:
    """Return a section for each setting of all axes but the first, whose values are its columns.

    Of many cases, values or settings the first, or some that are spread evenly, are shown, and the note says so.
    """
    axis = plan.axes[0]
    by_place = {row.point.places: row for row in rows}
    columns = _spread(sorted({row.point.places[0] for row in rows}), _MOST_COLUMNS)
    others = sorted({row.point.places[1:] for row in rows})
    cases = draw_cases(plan.task, min(plan.cases, _MOST_ROWS))
    guided = plan.method != "sample" and cases[0].has_image  # a sample does not look at what is given
    heads = [*(["given"] if guided else []), "true answer", *(" + ".join(_texts(plan, 0, place)) for place in columns)]
    sections = []
    for rest in _spread(others, _MOST_SECTIONS):
        some = [by_place.get((place, *rest)) for place in columns]
        drawn = tuple(_row(case, number, some, guided) for number, case in enumerate(cases))
        names = [f"{plan.axes[i + 1].name} = {' + '.join(_texts(plan, i + 1, place))}" for i, place in enumerate(rest)]
        columns_are, note = axis.name.replace("+", " + "), _note(plan, len(cases), len(others))
        note = ", ".join(filter(None, [f"columns: {columns_are}" if names else "", note]))
        sections.append(Section(title=", ".join(names) or columns_are, note=note, heads=tuple(heads), rows=drawn))
    return sections


def _row(case: Case, number: int, some: Sequence[Measured | None], guided: bool) -> Row:
    shown_cells = [*([Cell(image=case.image)] if guided else []), Cell(image=case.truth)]
    for row in some:
        if row is None or row.result is None:
            shown_cells.append(Cell(text="not drawn" if row is None else "failed", muted=True))
        else:
            shown_cells.append(Cell(image=row.result.images[number, 0].float() / 127.5 - 1))
    return Row(label=f"case {number}", note=case.target_text, cells=tuple(shown_cells))


def _note(plan: Plan, cases: int, others: int) -> str:
    parts = [f"{cases} of {plan.cases} cases" if cases < plan.cases else "", "seed 0" if len(plan.seeds) > 1 else ""]
    if others > _MOST_SECTIONS:
        parts.append(f"{_MOST_SECTIONS} of {others} other settings")
    if len(plan.axes[0].values) > _MOST_COLUMNS:
        parts.append(f"{_MOST_COLUMNS} of {len(plan.axes[0].values)} values")
    return ", ".join(filter(None, parts))


def _texts(plan: Plan, number: int, place: int) -> list[str]:
    return [shown(plain(part)) for part in plan.axes[number].values[place]]


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, the first and the last among them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
