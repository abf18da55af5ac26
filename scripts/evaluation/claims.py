"""``steerdiff evaluate claims``: which claims of the papers hold on emoji scenes; writes docs/claims.md."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerdiff.errors import require
from steerdiff.scripts.arguments import parse, plain
from steerdiff.scripts.runtime import environment
from steerdiff.scripts.suggestions import closest

from .running import RunFlags

if TYPE_CHECKING:
    from steerdiff.scripts.papers import Claim
    from steerdiff.train.benchmark import Interval

    from .cells import Cell
    from .running import Outcome

__all__ = ["Claims", "Finding", "cells_of", "command_of", "find", "main", "markdown"]


@dataclass(frozen=True, kw_only=True)
class Claims(RunFlags):
    """Check what the papers say: two settings of a method on the same cases and seeds, and the sign of the difference.

    A claim is confirmed if the 95 % interval of the difference lies wholly on the side that the paper names, refuted if
    it lies wholly on the other side, and undecided if it holds zero.
    """

    papers: tuple[str, ...] = ()  #: only these, by their word after ``steerdiff reproduce``; none means all
    cases: int | None = None  #: of each task, half of them of held-out combinations; None is what each claim asks for
    seeds: int = 3  #: seeds 0, 1, ... of each case
    out: Path = Path("out/claims")  #: folder for claims.md and claims.json


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim."""

    paper: str  #: its name
    claim: Claim
    verdict: str  #: confirmed, refuted, undecided or failed
    before: Interval | None  #: the score with the first setting
    after: Interval | None  #: and with the second
    difference: Interval | None  #: second minus first
    note: str = ""  #: why it failed
    command: str  #: shows the comparison


def main(arguments: Sequence[str], prog: str) -> int:
    """Check the claims, print the table and write it beside the JSON."""
    flags = parse(Claims, arguments, prog=prog)
    require(flags.cases is None or flags.cases >= 1, f"cases is {flags.cases}; it must be at least 1")
    require(flags.seeds >= 1, f"seeds is {flags.seeds}; it must be at least 1")
    from steerdiff.io import atomic_write, ensure_writable
    from steerdiff.scripts.papers import PAPERS

    for name in flags.papers:
        require(name in PAPERS, f"there is no paper {name!r}; {closest(name, PAPERS)}")
    ensure_writable(flags.out)
    chosen = [(name, claim) for name, paper in PAPERS.items() for claim in paper.claims if _asked(name, flags)]
    findings = find(chosen, flags)
    facts = {
        "options": plain(flags),
        "environment": environment(flags.place()),
        "claims": [_record(f) for f in findings],
    }
    text, page = json.dumps(facts, indent=2) + "\n", markdown(findings)
    atomic_write(flags.out / "claims.json", lambda file: file.write(text.encode()))
    atomic_write(flags.out / "claims.md", lambda file: file.write(page.encode()))
    print(page, end="")
    return int(any(finding.verdict == "failed" for finding in findings))


def _asked(name: str, flags: Claims) -> bool:
    return not flags.papers or name in flags.papers


def cells_of(claim: Claim, flags: Claims) -> tuple[Cell, Cell]:
    """Return the two cells that a claim compares."""
    from steerdiff.scripts.ablation.fields import replaced

    from .cells import Cell

    cases, seeds = _size(claim, flags)

    def cell(changes: Mapping[str, Any]) -> Cell:
        settings = replaced(claim.base, changes)
        return Cell(method=claim.method, settings=settings, task=claim.task, cases=cases, seeds=tuple(range(seeds)))

    return cell(claim.before), cell(claim.after)


def _size(claim: Claim, flags: Claims) -> tuple[int, int]:
    """Return the numbers of cases and of seeds; a method that does not look at the seed gets one."""
    from steerdiff.scripts.papers import PAPERS

    same = any(paper.deterministic and paper.method == claim.method for paper in PAPERS.values())
    return flags.cases or claim.cases, 1 if same else flags.seeds


def command_of(claim: Claim, flags: Claims) -> str:
    """Return the command that shows a claim: a sweep over its two settings, whose cells are the same."""
    cases, seeds = _size(claim, flags)
    default = type(claim.base)()
    words = ["steerdiff", "ablate", claim.method, "--task", claim.task]
    for field in fields(claim.base):
        value = getattr(claim.base, field.name)
        if value != getattr(default, field.name) and field.name not in claim.before:
            text = " ".join(map(str, plain(value))) if isinstance(value, tuple) else plain(value)
            words += ["--set", f"{field.name}={text}"]
    sides = ["+".join(str(plain(value)) for value in side.values()) for side in (claim.before, claim.after)]
    words += ["--sweep", f"{'+'.join(claim.before)}={','.join(sides)}"]
    return shlex.join([*words, "--cases", str(cases), "--seeds", str(seeds)])


def find(claims: Sequence[tuple[str, Claim]], flags: Claims) -> list[Finding]:
    """Run what the claims compare, each cell once, and judge.

    Args:
        claims: Names of papers with their claims.
        flags: How many cases and seeds, and how cells are run.
    """
    from .running import run_cells

    pairs = [cells_of(claim, flags) for _, claim in claims]
    outcomes = run_cells([cell for pair in pairs for cell in pair], flags, progress="claims")
    sides = list(zip(outcomes[::2], outcomes[1::2], strict=True))
    return [
        _judge(name, claim, side, command_of(claim, flags)) for (name, claim), side in zip(claims, sides, strict=True)
    ]


def _judge(paper: str, claim: Claim, sides: tuple[Outcome, Outcome], command: str) -> Finding:
    from steerdiff.train.benchmark import difference, summary, verdict

    from .cells import score

    errors = [side.error for side in sides if side.error is not None]
    common: dict[str, Any] = {"paper": paper, "claim": claim, "command": command}
    if errors:
        return Finding(**common, verdict="failed", before=None, after=None, difference=None, note=errors[0])
    scores = [score(side.cell, side.result) for side in sides if side.result is not None]
    change = difference(scores[0], scores[1], claim.score)
    before, after = (summary(one, claim.score) for one in scores)
    if change is None:
        note = f"{claim.score} does not apply to {claim.task} with these seeds"
        return Finding(**common, verdict="failed", before=before, after=after, difference=None, note=note)
    return Finding(**common, verdict=verdict(change, claim.rises), before=before, after=after, difference=change)


def _record(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    names = ("text", "source", "method", "task", "score", "rises")
    intervals = {name: getattr(finding, name) for name in ("before", "after", "difference")}
    return {
        "paper": finding.paper,
        **{name: getattr(claim, name) for name in names},
        "base": plain(claim.base),
        "settings": {"before": plain(claim.before), "after": plain(claim.after)},
        "verdict": finding.verdict,
        **{name: None if i is None else [i.value, i.low, i.high] for name, i in intervals.items()},
        "note": finding.note,
        "command": finding.command,
    }


def markdown(findings: Sequence[Finding]) -> str:
    """Return the page: for each paper its claims, one line each, with the commands below."""
    from steerdiff.scripts.papers import PAPERS
    from steerdiff.train.benchmark import SCORES

    lines = ["# What the papers claim, and what this domain says", "", *_introduction()]
    for name, paper in PAPERS.items():
        own = [finding for finding in findings if finding.paper == name]
        if not own:
            continue
        lines += ["", f"## {paper.title} ({paper.authors.split(',')[0].split(' and ')[0]} et al. {paper.year})", ""]
        lines += ["| claim | here | measured | before | after | difference |", "| --- | --- | --- | --- | --- | --- |"]
        for one in own:
            claim = one.claim
            sides = [
                f"{', '.join(f'{key} = {plain(v)}' for key, v in side.items())}" for side in (claim.before, claim.after)
            ]
            values = [f"{side}: {one_line}" for side, one_line in zip(sides, (one.before, one.after), strict=True)]
            measured = f"{SCORES[claim.score].title}, {claim.task}"
            lines.append(
                f"| {claim.text} ({claim.source}) | **{one.verdict}** | {measured} | {values[0]} | {values[1]} "
                f"| {one.note or one.difference} |"
            )
        lines += ["", "```text", *dict.fromkeys(one.command for one in own), "```"]
    return "\n".join(lines) + "\n"


def _introduction() -> list[str]:
    return [
        "Made by `steerdiff evaluate claims`. Each line compares two settings of one method on the same cases and",
        "seeds of emoji scenes, whose true answers are known; half of the cases are combinations that training",
        "never shows. A claim is *confirmed* if the 95 % interval of the difference (after minus before) lies",
        "wholly on the side that the paper names, *refuted* if it lies wholly on the other side, and *undecided*",
        "if it holds zero. A refutation says something about this small domain, not about photographs. Where a paper",
        "says it is recalled, in our words: look it up before quoting it.",
        "",
        "The intervals are bootstrapped over cases and seeds, and each stands for itself: of twenty differences",
        "that are not there, one is expected to be decided by chance. The commands below a table show its claims,",
        "from the same stored results.",
    ]
