"""The findings of a check for people, the worst last, where the eye is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.check import Report
from evolve.estimate import Estimate
from fitness.findings import LEVELS, Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def check_table(report: Report) -> RenderableType:
    """Findings with their remedies, then what the run will need, then the count."""
    counts = Counter(finding.level for finding in report.findings)
    lines = [", ".join(f"{counts[level]} {level}" for level in reversed(LEVELS) if counts[level])]
    if counts["error"]:
        lines.append("With errors a run cannot work, or would certainly be wasted.")
    parts: list[RenderableType] = [findings_table(report.findings)]
    if report.estimate is not None:
        parts.append(Text(_needs(report.estimate)))
    return Group(*parts, *map(Text, lines))


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row per finding, the worst last."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in sorted(findings, key=lambda one: LEVELS.index(one.level)):
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.check, _said(finding))
    return table


def _said(finding: Finding) -> Text:
    text = Text(f"{_short(finding.where)}: {finding.message}")
    if finding.remedy:
        text.append(f"\n{finding.remedy}", style="italic")
    return text


def _needs(one: Estimate) -> str:
    judged = "".join(f" {judge}." for judge in one.judges)
    return (
        f"The run will take about {_duration(one.total_seconds)} ({one.evaluation_seconds:.1f} s per evaluation, "
        f"{_duration(one.start_seconds)} to start; waiting for a judge not counted), {one.worker_bytes / 2**30:.1f} "
        f"GiB of memory per worker, and at most {one.disk_bytes / 2**20:.0f} MiB of disk.{judged}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short(where: str) -> str:
    return PurePath(where).name if where.startswith("/") else where
