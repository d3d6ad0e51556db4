"""The HTML page of ``evolve judge check`` and ``evolve judge attack``: one file with its plots, no network.

Answers and a judge's reasons are written by models that may have been told to attack: the template escapes every text,
plots hold none of them, and the page's policy runs no script but its own and loads nothing.
"""

from __future__ import annotations

import html
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evolve.resources import configs_dir

_WORST = 20
_MOST_CHARS = 2000
_MOST_POINTS = 3000
_JITTER = 0.12
_GRID, _LINE = "rgba(128,128,128,0.25)", "rgba(128,128,128,0.7)"


def write_judge_page(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report.

    Args:
        path: the file, replaced where it exists.
        report: what ``evolve judge check --json`` or ``evolve judge attack --json`` prints, told apart by ``kind``.

    Raises:
        OSError: the file cannot be written.
    """
    check = report["kind"] == "check"
    figures = _check_figures(report) if check else _attack_figures(report)
    environment = Environment(loader=FileSystemLoader(configs_dir() / "pages"), autoescape=True)
    environment.filters |= {"number": _number, "percent": _percent, "estimate": _estimate, "short": _short}
    page = environment.get_template("judge.html.jinja").render(
        title="A judge measured against people" if check else "A judge under attack",
        report=report,
        worst=_worst(report) if check else [],
        figures={name: json.loads(figure.to_json()) for name, figure in figures.items()},
        plotlyjs=Markup(get_plotlyjs()),
        nonce=secrets.token_urlsafe(16),
    )
    path.write_text(page, encoding="utf-8")


def _check_figures(report: Mapping[str, Any]) -> dict[str, go.Figure]:
    low, high = report["scale"]
    on_scale = {"range": [low - 0.5, high + 0.5]}
    rng = np.random.default_rng(0)
    people = _figure("people", "judge", yaxis=on_scale)
    people.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": _LINE, "dash": "dot"}, showlegend=False
    )
    for name, found in _by_name(
        (name, (human, item["judge"][name], number))
        for number, item in enumerate(report["items"], start=1)
        for name, human in item["human"].items()
        if name in item["judge"]
    ).items():
        moved = rng.uniform(-_JITTER, _JITTER, (len(found), 2))
        xs = [x + dx for (x, _, _), (dx, _) in zip(found, moved, strict=True)]
        ys = [y + dy for (_, y, _), (_, dy) in zip(found, moved, strict=True)]
        labels = [f"answer {number}: people {x:.3g}, judge {y:.3g}" for x, y, number in found]
        _add_points(people, name, xs, ys, labels)

    counts = _figure("score", "answers", barmode="group")
    for name, bars in report["histogram"].items():
        counts.add_bar(name=html.escape(name), x=[str(point) for point in bars], y=list(bars.values()))
    counts.update_xaxes(type="category")

    length = _figure("characters", "score of the judge", xaxis={"type": "log"}, yaxis=on_scale)
    for name, found in _by_name(
        (name, (max(item["chars"], 1), score, number))
        for number, item in enumerate(report["items"], start=1)
        for name, score in item["judge"].items()
    ).items():
        labels = [f"answer {number}: {x} characters, {y:.3g}" for x, y, number in found]
        _add_points(length, name, [x for x, _, _ in found], [y for _, y, _ in found], labels)

    figures = {"people": people, "histogram": counts, "length": length}
    differences = (report["retest"] or {}).get("differences")
    if differences:
        again = _figure("points between two judgements of an answer", "pairs of judgements")
        again.add_bar(x=[str(points) for points in differences], y=list(differences.values()))
        figures["retest"] = again.update_xaxes(type="category")
    return figures


def _attack_figures(report: Mapping[str, Any]) -> dict[str, go.Figure]:
    # Plotly draws the first row at the bottom.
    rows = [one for one in reversed(report["injections"]) if one["mean_change"] is not None]
    changes = [one["mean_change"] for one in rows]
    ends = [one["ci95"] or (one["mean_change"], one["mean_change"]) for one in rows]
    figure = _figure("points that the injection adds", "", margin={"l": 8, "r": 8, "t": 8, "b": 48})
    figure.add_scatter(
        x=changes,
        y=[html.escape(one["name"]) for one in rows],
        mode="markers",
        marker={"size": 10},
        error_x={
            "array": [end[1] - change for end, change in zip(ends, changes, strict=True)],
            "arrayminus": [change - end[0] for end, change in zip(ends, changes, strict=True)],
        },
    )
    figure.update_layout(height=max(240, 60 + 28 * len(rows)))
    figure.add_vline(0, line={"color": _LINE, "dash": "dot"})
    return {"changes": figure.update_yaxes(automargin=True)}


def _figure(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure(
        layout={
            "template": "none",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 48, "r": 8, "t": 8, "b": 48},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "hoverlabel": {"bgcolor": "#333", "bordercolor": "#333"},
            "colorway": ["#2f7ed8", "#e8743b", "#19a979", "#b05cc6", "#d1495b", "#8a8f3c", "#13a4b4"],
            **layout,
        }
    )
    figure.update_xaxes(title=x, gridcolor=_GRID, zerolinecolor=_GRID)
    return figure.update_yaxes(title=y, gridcolor=_GRID, zerolinecolor=_GRID)


def _add_points(figure: go.Figure, name: str, xs: Sequence[float], ys: Sequence[float], labels: Sequence[str]) -> None:
    figure.add_scatter(
        name=html.escape(name),
        x=[round(x, 3) for x in xs],
        y=[round(y, 3) for y in ys],
        text=labels,
        hoverinfo="text",
        mode="markers",
        marker={"size": 8, "opacity": 0.6},
        showlegend=True,
    )


def _by_name(
    points: Iterator[tuple[str, tuple[float, float, int]]],
) -> dict[str, list[tuple[float, float, int]]]:
    """Points by name, thinned out evenly so that the page stays small."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for name, point in points:
        found.setdefault(name, []).append(point)
    every = math.ceil(sum(map(len, found.values())) / _MOST_POINTS)
    return {name: some[::every] for name, some in found.items()}


def _worst(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The labels from which the judge is furthest, with what it said."""
    found = [
        {
            "name": name,
            "human": human,
            "judge": item["judge"][name],
            # The mean over the criteria has no reason of its own.
            "reason": item["reasons"].get(name) or "\n".join(f"{of}: {why}" for of, why in item["reasons"].items()),
            "number": number,
            "item": item,
        }
        for number, item in enumerate(report["items"], start=1)
        for name, human in item["human"].items()
        if item["judge"].get(name, human) != human
    ]
    return sorted(found, key=lambda one: -abs(one["judge"] - one["human"]))[:_WORST]


def _number(value: object, digits: int = 2, signed: bool = False) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _percent(share: object) -> str:
    return f"{share:.0%}" if isinstance(share, int | float) else "–"


def _estimate(estimate: object, signed: bool = False) -> str:
    """``0.85 [0.81, 0.88]``, from a number, or from one with its interval."""
    if not isinstance(estimate, Mapping):
        return _number(estimate, signed=signed)
    value = _number(estimate["value"], signed=signed)
    if estimate["ci95"] is None:
        return value
    return f"{value} [{', '.join(_number(end, signed=signed) for end in estimate['ci95'])}]"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]} … ({len(text)} characters in all)"
