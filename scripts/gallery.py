"""Sheets of pictures with words: what the demo's gallery is drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cell", "Row", "Section", "draw_gallery"]

INK, GREY, LINE, PAPER = (24, 24, 27), (113, 113, 122), (228, 228, 231), (255, 255, 255)
MARGIN, GAP, TITLE, HEAD, NOTE = 40, 18, 26, 15, 14  # pixels
_BESIDE = 14  # pixels between a section's title and its note


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture, or a text, in a row."""

    image: Tensor | None = None  #: [C, H, W] in [-1, 1]
    text: str = ""  #: shown where there is no picture, else below it
    muted: bool = False  #: the text in grey


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells under the heads of a section."""

    label: str  #: what the row shows, at its left
    note: str = ""  #: smaller, below the label
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows with common heads."""

    title: str
    note: str = ""  #: one line below the title
    heads: tuple[str, ...] = ()  #: one for each column
    rows: tuple[Row, ...]


def draw_gallery(title: str, sections: Sequence[Section], zoom: int = 3) -> Image.Image:
    """Return a sheet of all sections; pictures are enlarged ``zoom`` times without smoothing.

    Args:
        title: Line at the top.
        sections: What to draw, from top to bottom; pictures of one size.
        zoom: Screen pixels for each pixel of a picture.
    """
    side = max(cell.image.shape[-1] for s in sections for r in s.rows for cell in r.cells if cell.image is not None)
    side *= zoom
    columns = max(len(row.cells) for section in sections for row in section.rows)
    label_width = 190 if any(row.label for section in sections for row in section.rows) else 0
    words = max(_font(TITLE, bold=True).getlength(title), *(_title_width(section) for section in sections))
    width = 2 * MARGIN + max(label_width + columns * side + (columns - 1) * GAP, math.ceil(words))
    heights = [_section_height(section, side) for section in sections]
    sheet = Image.new("RGB", (width, 2 * MARGIN + 2 * TITLE + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, _font(TITLE, bold=True))
    y = MARGIN + 2 * TITLE
    for section, height in zip(sections, heights, strict=True):
        _draw_section(sheet, section, y, side, MARGIN + label_width)
        y += height
    return sheet


def _title_width(section: Section) -> float:
    title = _font(TITLE - 6, bold=True).getlength(section.title)
    return title + (_BESIDE + _font(NOTE).getlength(section.note) if section.note else 0)


def _section_height(section: Section, side: int) -> int:
    heads = HEAD + GAP if section.heads else 0
    return 2 * TITLE + heads + sum(_row_height(row, side) for row in section.rows) + MARGIN


def _row_height(row: Row, side: int) -> int:
    lines = max((len(_wrap(cell.text, side)) for cell in row.cells if cell.image is not None and cell.text), default=0)
    return side + GAP + lines * (NOTE + 5) + (6 if lines else 0)


def _draw_section(sheet: Image.Image, section: Section, y: int, side: int, left: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.line((MARGIN, y, sheet.width - MARGIN, y), LINE)
    pen.text((MARGIN, y + 14), section.title, INK, _font(TITLE - 6, bold=True))
    if section.note:
        x = MARGIN + pen.textlength(section.title, _font(TITLE - 6, bold=True)) + _BESIDE
        pen.text((x, y + 19), section.note, GREY, _font(NOTE))
    y += 2 * TITLE
    for column, head in enumerate(section.heads):
        pen.text((left + column * (side + GAP), y), head, GREY, _font(HEAD))
    y += HEAD + GAP if section.heads else 0
    for row in section.rows:
        _draw_row(sheet, row, y, side, left)
        y += _row_height(row, side)


def _draw_row(sheet: Image.Image, row: Row, y: int, side: int, left: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if row.label:
        pen.text((MARGIN, y + 4), row.label, INK, _font(HEAD + 1, bold=True))
        _text(pen, (MARGIN, y + 30), row.note, left - MARGIN - GAP, GREY)
    for column, cell in enumerate(row.cells):
        x, colour = left + column * (side + GAP), GREY if cell.muted else INK
        if cell.image is not None:
            sheet.paste(_enlarge(cell.image, side), (x, y))
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline=LINE)
        _text(pen, (x, y + (4 if cell.image is None else side + 6)), cell.text, side, colour)


def _enlarge(image: Tensor, side: int) -> Image.Image:
    from steerdiff.io import to_uint8

    pixels = to_uint8(image).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _text(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, colour: tuple[int, int, int]
) -> None:
    for number, line in enumerate(_wrap(text, width)):
        pen.text((place[0], place[1] + number * (NOTE + 5)), line, colour, _font(NOTE))


def _wrap(text: str, width: int) -> list[str]:
    """Break a text at spaces into lines of at most ``width`` pixels."""
    font = _font(NOTE)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib, so that the sheet is the same everywhere."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
