"""The same facts for people: rich tables and plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from textwrap import shorten
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.evaluation import Evaluation
from evolve.finals import Standing
from evolve.run import Run, resume_command
from evolve.stopping import EXPLANATIONS
from evolve.usage import judges, length_preference, stage_seconds, utilisation
from evolve.views import Ranked, against, optimism, ranking
from fitness.intervals import Difference

_CELL = 120  # characters of a reason in a table; the whole of it is in the JSON


def runs_table(runs: list[Run]) -> Table:
    """A line per run."""
    table = Table("name", "status", "search evaluations", "best search fitness", "why it ended", "created")
    for run in runs:
        rows = run.store.summaries("search")
        best = max((row.value for row in rows if row.value is not None), default=None)
        done = f"{len(rows)} of {run.state.plan.search_evaluations}"
        table.add_row(run.name, run.status, done, _number(best), run.state.stop_reason or "", run.state.created[:16])
    return table


def closing_table(run: Run) -> RenderableType:
    """Winner, finalists, parents and baselines side by side, as a paper's table would."""
    ranked = ranking(run)
    if not ranked:
        return Text("No candidate has been scored yet.")
    winner = ranked[0]
    table = Table("model", "search", "validation", "95% interval", title_justify="left")
    table.title = "On prompts the search has not seen" if winner.standing else "No finalist has been validated yet"
    finished = run.status == "finished"
    for entry in ranked.finalists or [winner]:
        label = f"{_role(entry, finished=finished)}: {entry.label}"
        search = entry.search.value if entry.search else None
        _add(table, label, search, entry.standing, style="bold" if entry.rank == 1 else "")
    compared = against(run, ranked)
    others = [standing for standing, _ in compared if standing.kind != "finalist"]
    for standing in others:
        search = standing.search.value if standing.search else None
        _add(table, f"{standing.kind}: {_short(standing.label)}", search, standing)
    lines: list[RenderableType] = [table]
    if len(ranked.finalists) > 1:
        lines.append(
            Text(
                f"Picked by these very scores: the intervals of the {len(ranked.finalists)} finalists and of the "
                "winner's lead are widened to hold for all of them at once (Bonferroni)."
            )
        )
    if (gap := optimism(run, winner)) is not None:
        lines.append(Text(f"Optimism (search minus validation fitness of the winner; above 0: flattered): {gap:+.3f}."))
    best_parent = max((s for s in others if s.kind == "parent"), key=_value, default=None)
    # The best parent is the one to beat.
    for standing, difference in sorted(compared, key=lambda pair: pair[0] is not best_parent):
        if difference is not None:
            lines.append(Text(f"The {_role(winner, finished=finished)} {verdict(difference, standing)}"))
    if winner.standing is not None and winner.standing.value is not None:
        unbeaten = [s for s in others if s.value is not None and s.value >= winner.standing.value]
        lines += [Text(f"No merge scored above {s.kind} {_short(s.label)} on these prompts.", "bold") for s in unbeaten]
    lines += [Text(f"Warning: {text}", style="yellow") for text in run.state.warnings]
    return Group(*lines)


def verdict(difference: Difference, other: Standing) -> str:
    """What the winner is beside another model: better, worse, or honestly not to be told from it."""
    name = f"{other.kind} {_short(other.label)}"
    interval = f"95% interval [{difference.low:.3f}, {difference.high:.3f}]"
    if difference.high < 0:
        return f"is worse than {name} by {-difference.mean:.3f}, {interval}."
    if difference.low > 0:
        probability = f", probability {f'{difference.p_better:.3f}' if difference.p_better < 0.9995 else 'above 0.999'}"
        if other.kind == "finalist":
            probability = ""  # the winner is the better one of the pair because it was picked so
        return f"is better than {name} by {difference.mean:.3f}, {interval}{probability}."
    return f"cannot be told from {name}: difference {difference.mean:+.3f}, {interval}; more prompts might tell."


def status_lines(run: Run) -> list[str]:
    """Where a run stands, in a few sentences."""
    plan, rows = run.state.plan, run.store.summaries("search")
    failed = [row for row in rows if row.value is None]
    reason = run.state.stop_reason
    if reason == run.status:
        reason = None
    explained = next((text for name, text in EXPLANATIONS.items() if name == reason), reason)
    lines = [
        f"{run.name}: {run.status}"
        + (f" ({reason}: {explained})" if reason and explained != reason else f" ({reason})" if reason else ""),
        f"search: {len(rows)} of {plan.search_evaluations} evaluations, {len(failed)} failed; "
        # Of an extended run nobody knows beforehand how many of its finalists will be finalists again.
        + f"{len(run.store)}{'' if run.status == 'finished' else f' of {plan.total_evaluations}'} in all",
    ]
    means = stage_seconds(rows)
    if means:
        lines.append("seconds per evaluation: " + ", ".join(f"{stage} {value:.2f}" for stage, value in means.items()))
    workers = utilisation(run)
    if workers:
        lines.append("busy: " + ", ".join(f"worker {one['worker']} {one['busy_share']:.0%}" for one in workers))
        most = max(one["peak_bytes"] for one in workers)
        lines += [f"memory: {most / 2**30:.1f} GiB in a worker's process at most"] if most else []
    lines += [_judge_line(one) for one in judges(run)]
    lines += _length_lines(length_preference(run))
    for change in run.state.changes:
        lines.append(f"changed {change['at'][:16]}: {'; '.join(change_lines(change['settings']))}")
    lines.append(f"history: {run.folder}")
    if run.status in ("interrupted", "failed"):
        lines.append(f"go on with: {resume_command(run)}")
    return lines


def _judge_line(judge: Mapping[str, Any]) -> str:
    cost = f", ${judge['usd']:.4f}" if judge["usd"] else ""
    return (
        f"judge {judge['answers_as']}: {judge['calls']} calls, {judge['cached']} verdicts from the cache, "
        f"{judge['prompt_tokens']} + {judge['completion_tokens']} tokens{cost}"
    )


def _length_lines(found: Mapping[str, float | None]) -> list[str]:
    named = {"within": "among the answers of one model", "between": "among the candidates"}
    parts = [f"{value:+.2f} {named[name]}" for name, value in found.items() if value is not None]
    return [f"score and length (rank correlation): {', '.join(parts)}"] if parts else []


def change_lines(settings: Mapping[str, Sequence[Any]]) -> list[str]:
    """A line per changed setting: its dotted path, and the values before and after."""
    shown = {path: ["unset" if value is None else value for value in values] for path, values in settings.items()}
    return [f"{path}: {was} -> {now}" for path, (was, now) in shown.items()]


def history_table(rows: list[dict[str, Any]]) -> Table:
    """A line per evaluation, from the JSON of ``evolve history``."""
    table = Table("number", "what", "asked", "fitness", "stderr", "seconds", "worker", "failure")
    for row in rows:
        seconds = sum(value for value in row["seconds"].values() if value is not None)
        workers = ", ".join(str(worker) for worker in row["workers"])
        table.add_row(
            str(row["number"]),
            _short(row["label"]),
            row["split"],
            _number(row["fitness"]),
            _number(row["stderr"]),
            f"{seconds:.1f}",
            f"{workers} in {row['shares']} parts *" if row["shares"] > 1 else workers,
            _failure(row),
        )
    if any(row["shares"] > 1 for row in rows):
        table.caption = "* The prompts were split over workers; batches of another size can change last digits."
        table.caption_justify = "left"
    return table


def answers_table(questions: list[str], columns: dict[str, list[str]]) -> Table:
    """The same questions answered by several models, side by side."""
    table = Table(title="The same questions", title_justify="left", show_lines=True)
    for header in ("question", *columns):
        table.add_column(header, overflow="fold")
    for index, question in enumerate(questions):
        table.add_row(question, *(answers[index] for answers in columns.values()))
    return table


def plain(renderable: RenderableType, width: int = 120) -> str:
    """A renderable as plain text, for files and tests."""
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def line_of(row: Evaluation) -> str:
    """One evaluation in one line, for logs."""
    seconds = ", ".join(f"{stage} {value:.1f}s" for stage, value in row.seconds.items())
    c, value = row.candidate, row.value
    outcome = f"fitness {value:.4f}" if value is not None else f"failed: {getattr(row.result, 'reason', '')}"
    tried = f"; tried {1 + len(row.lost)} times, worker {row.lost[-1].worker} was replaced" if row.lost else ""
    return f"{c.split:<10} {_short(c.label)}: {outcome} ({seconds}){tried}"


def _failure(row: dict[str, Any]) -> str:
    if row["failure"]:
        return shorten(f"{row['failure']['stage']}: {row['failure']['reason']}", _CELL)
    if not row["lost"]:
        return ""
    lost = "; ".join(f"worker {one['worker']}: {one['reason']}" for one in row["lost"])
    return shorten(f"tried {row['attempts']} times: {lost}", _CELL)


def _value(standing: Standing) -> float:
    return standing.value if standing.value is not None else float("-inf")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _role(entry: Ranked, *, finished: bool) -> str:
    """The leader of a search becomes a winner by validation only, once all finalists have had theirs."""
    if entry.rank > 1:
        return "finalist"
    return "winner" if entry.standing is not None and finished else "leader so far"


def _add(table: Table, label: str, search: float | None, standing: Standing | None, *, style: str = "") -> None:
    interval = f"{standing.ci95[0]:.3f} to {standing.ci95[1]:.3f}" if standing and standing.ci95 else "-"
    table.add_row(label, _number(search), _number(standing.value if standing else None), interval, style=style)


def _short(label: str) -> str:
    """A model's folder or hub name without the way there."""
    return PurePath(label).name
