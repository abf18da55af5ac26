"""Numbers of samples with all that they depend on: as JSON and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from steerdiff.scripts.runtime import environment

from .sample_flags import METRICS
from .sample_rows import Measuring, Row
from .sample_sources import Source

__all__ = ["Report", "versions"]

_PACKAGES = ("torch-fidelity", "torchvision", "open_clip_torch", "lpips", "timm", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All that an evaluation of samples found, and how."""

    options: Mapping[str, Any]  #: the flags
    sides: Mapping[str, Source]  #: "generated", "reference" and, where it was measured, "true scenes"
    networks: Mapping[str, Mapping[str, Any]]  #: by name: weights, hash, resize
    rows: Sequence[Row]
    versions: Mapping[str, Any]  #: of packages, and the machine

    @classmethod
    def of(
        cls, options: Mapping[str, Any], sides: Mapping[str, Source], measuring: Measuring, rows: list[Row]
    ) -> Report:
        """Put together what was measured."""
        networks = {name: network.to_dict() for name, network in measuring.networks.items()}
        for name in ("clip", "lpips", "dino"):
            measure = getattr(measuring, name)
            networks.update({} if measure is None else {METRICS[name].title: measure.facts})
        return cls(options=options, sides=sides, networks=networks, rows=rows, versions=versions(measuring.device))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {
            "options": dict(self.options),
            **{name: side.to_dict() for name, side in self.sides.items()},
            "networks": {name: dict(facts) for name, facts in self.networks.items()},
            "environment": dict(self.versions),
            "rows": [row.to_dict() for row in self.rows],
        }

    def markdown(self) -> str:
        """Return a table of the numbers, a line for each side and network, and one for the versions."""
        best = any(row.ceiling is not None for row in self.rows)
        head = ["metric", "features", "value", "spread", *["true scenes"] * best, "n", "stamp"]
        lines = [_line(head), _line(["---"] * len(head))]
        lines += [_line(self._cells(row, best)) for row in self.rows if not row.missing]
        lines += [_line([*cells, *["-"] * (len(head) - len(cells))]) for cells in self._missing()]
        lines.append("")
        lines += [f"- {name}: {_text(side.to_dict())}" for name, side in self.sides.items()]
        lines += [f"- {name}: {_text(facts)}" for name, facts in self.networks.items()]
        return "\n".join([*lines, f"- versions: {_text(self.versions)}"])

    def _cells(self, row: Row, best: bool) -> list[str]:
        metric = METRICS[row.metric]
        network = next(self.networks[name] for name in (row.features, metric.title) if name in self.networks)
        spread = "-" if row.spread is None else f"{row.spread:.2g} ({row.spread_is})"
        ceiling = [] if not best else ["-" if row.ceiling is None else f"{row.ceiling:.4g}"]
        counts = " / ".join(str(count or "?") for count in row.n)
        stamp = ", ".join(filter(None, [row.settings, self._resized(network), f"weights {network['sha256'][:8]}"]))
        title = f"{metric.title} ({metric.better} is better)"
        return [title, row.features, f"{row.value:.4g}", spread, *ceiling, counts, stamp]

    def _missing(self) -> list[list[str]]:
        """Return the cells of the rows without a value; those of one network and one reason are one row."""
        titles: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.missing:
                titles.setdefault((row.features, row.missing), []).append(METRICS[row.metric].title)
        return [[", ".join(of), network, f"not measured: {why}"] for (network, why), of in titles.items()]

    def _resized(self, network: Mapping[str, Any]) -> str:
        """Return what happened to the size of the images before a network saw them."""
        sizes = {side.size for side in self.sides.values() if side.size is not None}
        side = network.get("side")
        changed = [
            f"{width} x {height}"
            for height, width in sorted(sizes)
            if side is not None and (height, width) != (side, side)
        ]
        return f"{' and '.join(changed)} resized to {side} x {side}" if changed else "not resized"


def versions(device: str) -> dict[str, Any]:
    """Return what a number depends on besides files and settings: versions and machine."""
    return {**environment(device), **{name: version(name) for name in _PACKAGES}}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(values: Mapping[str, Any]) -> str:
    """Return ``a: 1, b: 2`` of nested values; what is None is left out."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} ({_text(value)})")
        elif isinstance(value, (list, tuple)):
            parts.append(f"{name}: {(' x ' if name == 'size' else ' and ').join(map(str, value))}")
        elif value is not None:
            parts.append(f"{name}: {value}")
    return ", ".join(parts)
