"""The findings of a check for people, the worst last, where the eye is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.estimate import Estimate
from evolve.report import Report
from evolve.short_names import shortened
from evolve.vectors_table import vectors_table
from fitness.findings import LEVELS, Finding

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


# What a reader came for is told also where it is in order.
_TOLD = ("answers-end", "answers-scored", "answers-language", "judge-answers", "judge-cost", "power", "memory")


def check_table(report: Report, *, verbose: bool = False) -> RenderableType:
    """Findings with their remedies, then what the run will need, then the count.

    Args:
        report: what was found.
        verbose: also a row for everything that is in order.
    """
    told = [one for one in report.findings if verbose or one.level != "ok" or one.check in _TOLD]
    parts: list[RenderableType] = [findings_table(told, report.names)]
    if quiet := list(dict.fromkeys(one.check for one in report.findings if one not in told)):
        parts.append(Text(f"In order (--verbose says more): {', '.join(quiet)}.", style=STYLES["ok"]))
    written = [one for one in report.findings if one.check == "chat-template" and one.evidence]
    parts += [conversations(one, report.names) for one in written]
    if report.vectors is not None and report.vectors.total is not None:
        parts.append(vectors_table(report.vectors, report.names))
    return Group(*parts, *map(Text, _closing(report)))


def _closing(report: Report) -> Iterator[str]:
    """The plan, what the run will need, the count, and what follows from it."""
    if (plan := report.plan) is not None:
        yield (
            f"The plan: {plan.search_evaluations} evaluations in {plan.generations} generations of {plan.popsize}, "
            f"{plan.total_evaluations} with parents, baselines and finalists (evolve plan says more)."
        )
    counts = Counter(finding.level for finding in report.findings)
    if report.estimate is not None:
        yield _needs(report.estimate)
    elif not counts["error"]:
        yield "Answers, time and what the prompts can show were not looked at (--no-probe)."
    yield ", ".join(f"{counts[level]} {level}" for level in reversed(LEVELS) if counts[level])
    if counts["error"]:
        yield "With errors a run cannot work, or would certainly be wasted; what builds on them was not checked."
    if counts["error"] or counts["warning"]:
        yield "evolve run repeats what needs no engine: errors end it, warnings too, unless --force has them recorded."


def findings_table(findings: Sequence[Finding], names: Mapping[str, str] = MappingProxyType({})) -> Table:
    """A row per finding, the worst last.

    Args:
        findings: in the order of the checks.
        names: short names of models, by long ones.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a path that is cut is of no use
    for finding in sorted(findings, key=lambda one: LEVELS.index(one.level)):
        table.add_row(Text(finding.level, style=STYLES[finding.level]), finding.check, _said(finding, names))
    return table


def conversations(finding: Finding, names: Mapping[str, str]) -> Table:
    """One conversation as two chat templates write it, side by side."""
    table = Table(*(names.get(name, name) for name in finding.evidence), box=SIMPLE)
    table.add_row(*(Text(written) for written in finding.evidence.values()))
    return table


def _said(finding: Finding, names: Mapping[str, str]) -> Text:
    where = names.get(finding.where, _short(finding.where))
    text = Text(shortened(f"{where}: {finding.message}", names))
    if finding.remedy:
        text.append(f"\n{finding.remedy}", style="italic")
    return text


def _needs(one: Estimate) -> str:
    judged = "".join(f" {judge}." for judge in one.judges)
    if any(judge.seconds is None for judge in one.judges):
        judged += " Waiting for a judge is not counted where too few questions told how long it takes."
    return (
        f"The run will take about {_duration(one.total_seconds)} ({one.evaluation_seconds:.1f} s per evaluation, "
        f"{_duration(one.start_seconds)} to start), {one.worker_bytes / 2**30:.1f} GiB of memory per worker (mapped "
        f"parents included), and at most {one.disk_bytes / 2**20:.0f} MiB of disk.{judged}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short(where: str) -> str:
    return PurePath(where).name if where.startswith("/") else where
