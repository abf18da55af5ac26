"""The tables and the plot of ``steerdiff bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerdiff.scripts.ablation.plots import figure_of, png_of

from .contest import Ratio

__all__ = ["markdown", "plot", "summary"]

#: A ratio of a contest, and what was measured of it.
_Row = tuple[tuple[str, Ratio], Mapping[str, Any] | None]

_NAMED = 4  # operators of an entry
_GREY, _COLOURS = "0.5", ("tab:blue", "tab:orange")


def summary(result: Mapping[str, Any]) -> str:
    """Return a contest's lines for the terminal."""
    lines = [result["key"]]
    for name, entry in result["entries"].items():
        lines.append(
            f"  {name:<24} {entry['seconds'] * 1e3:10.3f} ms  spread {entry['spread']:4.0%}  "
            f"{entry['rate']:10.1f} {result['unit']}s/s  peak {entry['peak_bytes'] / 2**20:8.1f} MiB"
        )
    lines += [f"  {one['of']} / {one['to']}: {_cells(one)[0]} of the time" for one in result["ratios"]]
    return "\n".join(lines)


def markdown(results: Sequence[Mapping[str, Any]], planned: Mapping[str, Sequence[Ratio]]) -> str:
    """Return the page: for each kind of device and each hardware the ratios and what each entry took.

    Args:
        results: What was measured, each with the environment it was measured in.
        planned: All ratios by the key of their contest; those that no hardware of a kind has measured stay empty.
    """
    parts = [
        "# Measured speed\n\n"
        "Made by `steerdiff bench --markdown`; `docs/performance.md` says how to read it. A ratio is the median of "
        "all rounds, with its quartiles; below 1 the first entry is faster, or needs less memory. Bold misses its "
        "goal. An empty cell was not measured.\n"
    ]
    for kind, title in (("cpu", "CPU"), ("cuda", "GPU")):
        places: dict[str, dict[str, Mapping[str, Any]]] = {}
        for result in results:
            if result["environment"]["kind"] == kind:
                places.setdefault(_place(result["environment"]), {})[result["key"]] = result
        measured: set[tuple[str, Ratio]] = set()
        for number, (place, own) in enumerate(sorted(places.items())):
            rows = _rows(own, planned)
            measured |= {row for row, _ in rows}
            name = title if len(places) == 1 else f"{title} {number + 1}"
            parts.append(f"## {name}\n\nMeasured on {place}.\n\n{_ratios(rows)}\n")
            parts.append(f"### What each took on {name}\n\n{_entries(own.values())}\n")
        empty = [((key, ratio), None) for key, ratios in planned.items() for ratio in ratios]
        empty = [row for row in empty if row[0] not in measured]
        if empty:
            parts.append(f"## {title}: not measured\n\n{_ratios(empty)}\n")
    return "\n".join(parts)


def plot(results: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return a PNG of rate and memory against batch and side of the state; None if no curve was measured."""
    curves = [result for result in results if "curve" in result]
    if not curves:
        return None
    hardware = curves[-1]["environment"]["hardware"]  # the one that was measured last
    curves = [curve for curve in curves if curve["environment"]["hardware"] == hardware]
    figure = figure_of((9, 6))
    panels = figure.subplots(2, 2, sharex="col")
    for column, (along, label) in enumerate((("batch", "batch"), ("side", "height and width of the state, batch 1"))):
        for name, colour in zip(("ours", "diffusers"), _COLOURS, strict=True):
            points = sorted(
                (one["at"], one["entries"][name]) for one in curves if one["curve"] == along and name in one["entries"]
            )
            if not points:
                continue
            at = [x for x, _ in points]
            look: dict[str, Any] = {"color": colour, "marker": "o", "label": name}
            panels[0, column].plot(at, [entry["rate"] for _, entry in points], **look)
            panels[1, column].plot(at, [entry["peak_bytes"] / 2**20 for _, entry in points], **look)
        panels[1, column].set_xlabel(label)
    for rates, memory in panels.T:
        for panel in (rates, memory):
            panel.grid(color=_GREY, alpha=0.3)
        if not rates.has_data():
            continue
        memory.set_xscale("log", base=2)
        memory.set_yscale("log")
        memory.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        memory.yaxis.set_major_formatter(_number)
        memory.yaxis.set_minor_formatter(_number)
        rates.set_ylim(bottom=0)
    panels[0, 0].set_ylabel("images a second")
    panels[1, 0].set_ylabel("peak memory, MiB")
    panels[0, 0].legend(loc="lower right")
    figure.suptitle(f"One call of the small UNet, {hardware}")
    return png_of(figure)


def _number(value: float, _: int) -> str:
    """Return a tick's label: a plain number, and nothing for most of those between powers of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _place(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"{environment['hardware']}, {environment['threads']} CPU threads, {environment['precision']}; {versions}"


def _rows(own: Mapping[str, Mapping[str, Any]], planned: Mapping[str, Sequence[Ratio]]) -> list[_Row]:
    """Return the planned ratios that were measured, in their order."""
    rows: list[_Row] = []
    for key, ratios in planned.items():
        found = {(one["of"], one["to"]): one for one in own[key]["ratios"]} if key in own else {}
        rows += [((key, ratio), found[ratio.of, ratio.to]) for ratio in ratios if (ratio.of, ratio.to) in found]
    return rows


def _ratios(rows: Sequence[_Row]) -> str:
    lines = ["| case | of | to | time | goal | memory | goal |", "|---|---|---|---|---|---|---|"]
    for (key, ratio), found in rows:
        time, memory = _cells(found)
        goals = [_goal(goal) for goal in (ratio.time, ratio.memory)]
        lines.append(f"| {key} | {ratio.of} | {ratio.to} | {time} | {goals[0]} | {memory} | {goals[1]} |")
    return "\n".join(lines)


def _cells(ratio: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a ratio's time and memory; bold where it misses its goal, empty where it was not measured."""
    if ratio is None:
        return "", ""
    time = f"{_bold(ratio['time'], ratio['time_goal'])} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return time, "" if ratio["memory"] is None else _bold(ratio["memory"], ratio["memory_goal"])


def _bold(value: float, goal: float | None) -> str:
    return f"{value:.2f}" if goal is None or value <= goal else f"**{value:.2f}**"


def _goal(goal: float | None) -> str:
    return "" if goal is None else f"≤ {goal:g}"


def _entries(results: Any) -> str:
    lines = [
        "| case | entry | parameters | ms | spread | rate | peak, MiB | its time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, entry in result["entries"].items():
            parameters = result.get("parameters", {}).get(name.split(",")[0])
            lines.append(
                f"| {result['key']} | {name} | {'' if parameters is None else f'{parameters:,}'} | "
                f"{entry['seconds'] * 1e3:.3f} | {entry['spread']:.0%} | {entry['rate']:.2f} {result['unit']}s/s | "
                f"{entry['peak_bytes'] / 2**20:.1f} | {_shares(entry.get('operators', {}))} |"
            )
        for name, reason in result.get("missing", {}).items():
            lines.append(f"| {result['key']} | {name} | | not measured: {reason} | | | | |")
    return "\n".join(lines)


def _shares(operators: Mapping[str, float]) -> str:
    """Return the operators with the largest shares, such as "convolution 61%, addmm 12%"."""
    return ", ".join(f"{name} {share:.0%}" for name, share in list(operators.items())[:_NAMED])
