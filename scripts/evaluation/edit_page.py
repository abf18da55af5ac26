"""The page of `evaluate edits`: tables, plots and the cases of each task next to each other, worst first."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape

from steerdiff.scripts.page import document
from steerdiff.train.benchmark import SCORES, TASKS, Case

from .edit_pictures import given_path, others_path, plot_path, result_path, truth_path
from .edit_report import COMPARED_NOTE, HELD_OUT_NOTE, SUMMARY_NOTE, Report, failures, stamp, unclaimed_note
from .edit_results import Entry, TaskResults, worst_first
from .edit_tables import SHOWN, comparison_table, held_out_table, html, main_table, summary_table

__all__ = ["build_edit_page"]

_TITLE = "Edits against their true answers"
_ORDER = "feature_inside"
_STYLE = """
body { max-width: 1320px; } main p, p { max-width: 85ch; }
nav { margin: 1.2rem 0 2rem; display: flex; flex-wrap: wrap; gap: .4rem .9rem; font-size: .95rem; }
a { color: #0072b2; } h2 { border-top: 2px solid #18181b; padding-top: 1.2rem; } h3 { margin: 1.6rem 0 .3rem; }
.plot { max-width: 100%; height: auto; } .plot.one { width: 820px; }
.wide { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid #18181b; }
th, td { padding: .3rem .8rem .3rem 0; } td { border-bottom: 1px solid #e4e4e7; white-space: nowrap; }
.muted { color: #71717a; } .caution { border-left: 4px solid #d55e00; padding-left: .8rem; color: #18181b; }
.case { border-top: 1px solid #e4e4e7; padding: .8rem 0 .5rem; }
.case > p { margin: 0 0 .5rem; font-size: .92rem; color: #18181b; max-width: none; }
.strip { display: flex; gap: .8rem; overflow-x: auto; padding-bottom: .3rem; }
.strip figure { width: 128px; flex: none; } .strip img { width: 128px; height: 128px; display: block; }
.strip .truth { margin-right: .9rem; }
.seeds img { width: auto; height: 64px; } .seeds figure { width: auto; }
.right { color: #00705a; font-weight: 600; } .wrong { color: #b03a00; font-weight: 600; }
.failed { width: 128px; height: 128px; background: #f4f4f5; display: grid; place-items: center; font-size: .75rem;
          text-align: center; overflow: hidden; }
"""


def build_edit_page(report: Report, plotted: Collection[str]) -> str:
    """Return the page as HTML; it refers to files beside it only.

    Args:
        report: What there is to show.
        plotted: The tasks that have a plot.
    """
    tasks = [_task(report, results, results.task in plotted) for results in report.results]
    parts = [_summary(report, bool(plotted)), *tasks, _held_out(report)]
    return document(_TITLE, _top(report), "\n".join(parts), stamp(report).replace("`", ""), _STYLE)


def _top(report: Report) -> str:
    texts = [
        "Each case is a picture that was composed, so that the edit that is asked for has one true answer: a second "
        "picture, made by the same rules. No method sees it. A result is scored against it: whether another network, "
        "the recogniser, sees the attribute that was asked for (right), how far the result is from the true answer "
        "where that differs from the image (inside) and where it does not (outside), by pixels and by features.",
        f"{report.size}. Numbers are means with 95 % intervals of a bootstrap over cases and seeds; comparisons are "
        "paired. Half of the cases ask for combinations of object and colour that training never showed. Each method "
        "runs on the tasks that its paper claims, with the paper's settings translated to this model (published) and "
        "with one setting of our own for all tasks (tuned). Two yardsticks need no method: the image unchanged, and a "
        "sample from the caption that forgets the image.",
    ]
    caution = f"<p class='caution'>{escape(report.caution)}</p>\n" if report.caution else ""
    failed = [f"{task}: {entry.entrant.label}" for task, entry in failures(report)]
    if failed:
        caution += f"<p class='caution'>{escape('Failed: ' + '; '.join(failed) + '. The tables say why.')}</p>\n"
    links = [("summary", "Summary"), *((_anchor(one.task), TASKS[one.task].title) for one in report.results)]
    links.append(("held-out", "Held-out combinations"))
    nav = "".join(f"<a href='#{anchor}'>{escape(text)}</a>" for anchor, text in links)
    return caution + "\n".join(f"<p>{escape(text)}</p>" for text in texts) + f"\n<nav>{nav}</nav>"


def _summary(report: Report, plotted: bool) -> str:
    missing = f"<p>{escape(unclaimed_note(report))}</p>" if report.unclaimed else ""
    alt = "target attribute right against error, one plot for each task"
    return "\n".join(
        [
            "<h2 id='summary'>Summary</h2>",
            f"<p>{escape(SUMMARY_NOTE)} {escape(report.size)}.</p>",
            html(summary_table(report.results)),
            f"<img class='plot' src='edits.png' alt='{alt}'>" if plotted else "",
            f"<p>Up and left is better; bars are 95 % intervals. {escape(report.size)}.</p>" if plotted else "",
            missing,
            _legend(),
        ]
    )


def _task(report: Report, results: TaskResults, plotted: bool) -> str:
    task = TASKS[results.task]
    plot = f"<img class='plot one' src='{plot_path(results.task)}' alt='Pareto plot of {escape(task.title)}'>"
    return "\n".join(
        [
            f"<h2 id='{_anchor(results.task)}'>{escape(task.title)}</h2>",
            f"<p>{escape(task.note)}.</p>",
            plot if plotted else "",
            html(main_table([results], tasks=False)),
            f"<p>{escape(report.size)}. Bold: best of its setting, the paired interval excludes a tie.</p>",
            "<details><summary>paired comparisons</summary>",
            f"<p>{escape(COMPARED_NOTE)}</p>",
            html(comparison_table([results])),
            "</details>",
            *_cases(report, results),
        ]
    )


def _cases(report: Report, results: TaskResults) -> list[str]:
    ordered, words = worst_first(results, _ORDER), SCORES[_ORDER].title
    known = not all(math.isnan(badness) for _, badness in ordered)
    order = f"Worst first, by the {words} over all methods and seeds" if known else "In the order of their numbers"
    note = f"{order}. Results are those of seed 0"
    note += "; the other seeds are below each row." if report.seeds > 1 else "."
    outline = " The line in the image given surrounds where a method may change it." if _masked(results) else ""
    parts = [f"<h3>Cases</h3><p>{escape(note + outline)} n = {len(results.cases)}.</p>"]
    parts += [_case(results, number, badness) for number, badness in ordered]
    return parts


def _case(results: TaskResults, number: int, badness: float) -> str:
    case = results.cases[number]
    split = "held-out combination" if case.split == "held_out" else "seen combination"
    score = "" if math.isnan(badness) else f", mean {SCORES[_ORDER].title} {badness:.3f}"
    head = f"<p><b>Case {number}</b>: “{escape(case.target_text)}” <span class='muted'>({split}{score})</span></p>"
    given = _figure(given_path(case), "image given", case.source_text) if case.has_image else ""
    truth = _figure(truth_path(case), "true answer" if case.has_image else "an answer", "", " class='truth'")
    drawn = [entry for entry in results.entries if entry.entrant.method != "unchanged"]
    figures = "".join(_result(case, number, entry) for entry in drawn)
    return f"<div class='case'>{head}<div class='strip'>{given}{truth}{figures}</div>{_others(case, drawn)}</div>"


def _result(case: Case, number: int, entry: Entry) -> str:
    name = f"<b>{escape(entry.entrant.label)}</b>"
    if entry.scores is None:
        failed = f"failed: {entry.error}"
        return f"<figure><div class='failed'>{escape(failed)}</div><figcaption>{name}</figcaption></figure>"
    mark, distance = _value(entry, "right", number), _value(entry, _ORDER, number)
    words = [] if math.isnan(mark) else [f"<span class='{'right' if mark else 'wrong'}'>{_MARKS[bool(mark)]}</span>"]
    words += [] if math.isnan(distance) else [f"{distance:.3f}"]
    alt = f"result of {entry.entrant.label}"
    picture = f"<img loading='lazy' src='{result_path(case, entry)}' alt='{escape(alt)}'>"
    return f"<figure>{picture}<figcaption>{name}{' '.join(words)}</figcaption></figure>"


_MARKS = {True: "✓ right", False: "✗ wrong"}


def _value(entry: Entry, score: str, number: int) -> float:
    """Return a score of a case with seed 0, NaN where it has none."""
    values = {} if entry.scores is None else entry.scores.values
    return float(values[score][number, 0]) if score in values else math.nan


def _others(case: Case, entries: Sequence[Entry]) -> str:
    """Return the results of the other seeds, on demand."""
    figures = []
    for entry in entries:
        if entry.images is not None and entry.images.shape[1] > 1:
            alt = f"other seeds of {entry.entrant.label}"
            picture = f"<img loading='lazy' src='{others_path(case, entry)}' alt='{escape(alt)}'>"
            figures.append(f"<figure>{picture}<figcaption>{escape(entry.entrant.label)}</figcaption></figure>")
    if not figures:
        return ""
    return f"<details><summary>other seeds</summary><div class='strip seeds'>{''.join(figures)}</div></details>"


def _held_out(report: Report) -> str:
    table = html(held_out_table(report.results))
    note = f"<p>{escape(HELD_OUT_NOTE)} {escape(report.size)}.</p>"
    return f"<h2 id='held-out'>Held-out combinations</h2>\n{note}\n{table}"


def _legend() -> str:
    items = "".join(f"<li><b>{escape(SCORES[name].title)}</b>: {escape(SCORES[name].note)}</li>" for name in SHOWN)
    return f"<details><summary>what the scores are</summary><ul>{items}</ul></details>"


def _figure(source: str, head: str, text: str, kind: str = "") -> str:
    picture = f"<img loading='lazy' src='{source}' alt='{escape(head)}'>"
    return f"<figure{kind}>{picture}<figcaption><b>{escape(head)}</b>{escape(text)}</figcaption></figure>"


def _masked(results: TaskResults) -> bool:
    return any(case.mask is not None for case in results.cases)


def _anchor(task: str) -> str:
    return "task-" + task.replace(" ", "-")
