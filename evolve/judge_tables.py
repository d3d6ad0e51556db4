"""What ``evolve judge`` reports, for people: the same data as its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]


def ask_report(report: Report) -> RenderableType:
    """One judgement: a line per criterion with the reason."""
    if report["verdict"] is None:
        reply = f"\nIt said: {report['reply']}" if report["reply"] else ""
        return Group(_head(report), Text(f"Unscored: {report['unscored']}.{reply}"))
    table = Table("criterion", "score", "reason", show_lines=True)
    samples = report["verdict"]["samples"]
    for name in samples[0]:
        for sample in samples:
            table.add_row(name, f"{sample[name]['score']:g}", Text(sample[name]["reason"]))
    low, high = report["scale"]
    lines = [f"Score: {report['score']:.2f} on a scale from {low:g} to {high:g} (weighted mean over the criteria)."]
    if report["spread"]:
        spread = ", ".join(f"{name} {value:.2f}" for name, value in report["spread"].items())
        lines.append(f"Standard deviation over {len(samples)} samples: {spread}.")
    return Group(_head(report), table, *map(Text, [*lines, _cost(report["cost"])]))


def check_report(report: Report) -> RenderableType:
    """Agreement with people and with itself."""
    table = Table(
        "", "answers", "Spearman", "Kendall", "alpha", "judge - people", "people's alpha", title_justify="left"
    )
    table.title = "Agreement with people (95% interval)"
    for name, one in report["agreement"].items():
        estimates = [_estimate(one[key]) for key in ("spearman", "kendall", "alpha", "mean_difference")]
        alone = report["raters_alpha"].get(name)
        table.add_row(name, str(one["pairs"]), *estimates, "-" if alone is None else f"{alone:.2f}")
    low, high = report["scale"]
    histogram = Table("scores given", *(str(score) for score in report["histogram"]["score"]))
    for name, counts in report["histogram"].items():
        histogram.add_row(name, *map(str, counts.values()))
    lines = [f"Unscored: {report['unscored']} of {report['answers']} answers."]
    lines += [f"  {count}: {shorten(reason, 160)}" for reason, count in report["unscored_reasons"].items()]
    if retest := report["retest"]:
        lines.append(
            f"Judged again, {retest['answers']} answers: the scores differ by {retest['mean_abs_difference']:.2f} on "
            f"average, {retest['equal_share']:.0%} are the same; standard deviation {retest['spread']:.2f}."
        )
    length = report["length"]
    lines.append(f"Score and length (Spearman): {_estimate(length['spearman'])}.")
    if (beyond := length["against_people"]) is not None:
        lines.append(f"For a doubling of the length the judge gives {beyond:+.2f} points beyond what people give.")
        ci = length["spearman"]["ci95"]
        if beyond > 0 and ci is not None and ci[0] > 0:
            lines.append(f"fitness.length_control.per_doubling: {beyond / (high - low):.3f} takes that back.")
    return Group(_head(report), table, histogram, *map(Text, [*lines, _cost(report["cost"])]))


def attack_report(report: Report) -> RenderableType:
    """A line per injection, the most harmful first."""
    table = Table()
    for title in ("injection", "mean change", "95% interval", "raised", "best score", "unscored"):
        table.add_column(title, no_wrap=title in ("injection", "95% interval"))
    for one in report["injections"]:
        ci = one["ci95"]
        table.add_row(
            one["name"],
            "-" if one["mean_change"] is None else f"{one['mean_change']:+.2f}",
            "-" if ci is None else f"{ci[0]:+.2f} to {ci[1]:+.2f}",
            "-" if one["raised_share"] is None else f"{one['raised_share']:.0%}",
            "-" if one["top_share"] is None else f"{one['top_share']:.0%}",
            str(one["unscored"]),
        )
    low, high = report["scale"]
    note = (
        f"Points on a scale from {low} to {high}, over {report['answers']} of your answers. Raised: by more than half "
        "a point. Compare with the controls, which ask for nothing. An injection that raises scores is one that a "
        "search can learn; what cannot happen is that it changes the rubric or reaches another answer. With few "
        "answers an interval is as wide as the scale: --count 50."
    )
    return Group(_head(report), table, Text(note), Text(_cost(report["cost"])))


def _head(report: Report) -> Text:
    return Text(f"Judge {report['judge']}, rubric {report['rubric']} ({report['rubric_version']})")


def _cost(cost: Mapping[str, Any]) -> str:
    dollars = f", ${cost['usd']:.4f}" if cost["usd"] else ""
    each = f" (${cost['usd_per_answer']:.5f} per answer)" if cost["usd_per_answer"] else ""
    return (
        f"Asked: {cost['calls']} calls, {cost['cached']} verdicts from the cache, {cost['prompt_tokens']} + "
        f"{cost['completion_tokens']} tokens{dollars}{each}."
    )


def _estimate(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "-"
    ci = one["ci95"]
    return f"{one['value']:.2f}" + (f" ({ci[0]:.2f} to {ci[1]:.2f})" if ci else "")
