"""Pages: one HTML file beside its pictures, without scripts or anything from elsewhere; the demo's and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Figure", "Panel", "Part", "build_page", "document"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #18181b; background: #fff; max-width: 1180px; margin: 3rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .2rem; }
p { color: #52525b; margin: .2rem 0 1rem; max-width: 75ch; }
.row { border-top: 1px solid #e4e4e7; padding: 1rem 0 .6rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 192px; } figure img { width: 192px; image-rendering: pixelated; border: 1px solid #e4e4e7; }
figcaption { font-size: .85rem; color: #52525b; line-height: 1.35; }
figcaption b { color: #18181b; font-weight: 600; display: block; }
pre { font-size: .8rem; background: #f4f4f5; padding: .6rem .8rem; overflow-x: auto; border-radius: 4px; }
details summary { font-size: .85rem; color: #71717a; cursor: pointer; margin-top: .5rem; }
footer { margin-top: 3rem; font-size: .85rem; color: #71717a; border-top: 1px solid #e4e4e7; padding-top: 1rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its caption."""

    source: str  #: path from the page
    head: str  #: what it is
    text: str = ""  #: what it shows


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Figures that belong together, and the command that makes them."""

    figures: tuple[Figure, ...]
    command: str = ""  #: shown on demand


@dataclass(frozen=True, kw_only=True)
class Part:
    """A titled part of the page."""

    title: str
    note: str = ""
    panels: tuple[Panel, ...]


def build_page(title: str, intro: str, parts: Sequence[Part], footer: str) -> str:
    """Return the demo's page as HTML."""
    body = "\n".join(_part(part) for part in parts)
    return document(title, f"<p>{escape(intro)}</p>", body, footer)


def document(title: str, top: str, body: str, footer: str, style: str = "") -> str:
    """Return a page as HTML.

    Args:
        title: Of the window, and the page's first line.
        top: HTML below it.
        body: HTML.
        footer: Text, the last line.
        style: CSS rules after those that all pages share.
    """
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    first = f"<h1>{escape(title)}</h1>\n{top}"
    end = f"<footer>{escape(footer)}</footer>"
    whole = ["<!doctype html>", "<html lang='en'>", f"<head>{head}<style>{_STYLE}{style}</style></head>"]
    whole += ["<body>", first, body, end, "</body>", "</html>"]
    return "\n".join(whole) + "\n"


def _part(part: Part) -> str:
    panels = "\n".join(_panel(panel) for panel in part.panels)
    return f"<h2>{escape(part.title)}</h2>\n<p>{escape(part.note)}</p>\n{panels}"


def _panel(panel: Panel) -> str:
    figures = "".join(_figure(figure) for figure in panel.figures)
    command = (
        f"<details><summary>command</summary><pre>{escape(panel.command)}</pre></details>" if panel.command else ""
    )
    return f"<div class='row'><div class='pictures'>{figures}</div>{command}</div>"


def _figure(figure: Figure) -> str:
    picture = f"<img src='{escape(figure.source)}' alt='{escape(figure.text or figure.head)}'>"
    return f"<figure>{picture}<figcaption><b>{escape(figure.head)}</b>{escape(figure.text)}</figcaption></figure>"
