"""What a run took, as plain data: seconds by stage, how busy its workers were, what its judges were asked and paid."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats

from evolve.evaluation import Evaluation, Summary
from evolve.run import Run
from evolve.state import SPENDING_FILE
from fitness.spending import Spent, read_spending
from workers.job import Share

STAGES = ("merge", "generate", "judge")


def stage_seconds(rows: Sequence[Evaluation] | Sequence[Summary]) -> dict[str, float]:
    """Mean seconds per evaluation by stage."""
    return {s: math.fsum(row.seconds.get(s, 0.0) for row in rows) / len(rows) for s in STAGES} if rows else {}


def length_preference(run: Run) -> dict[str, float | None]:
    """How score and length go together in the search (Spearman's rank correlations, ``None`` where undefined).

    Returns:
        ``within``: over the answers of one model, the mean over all evaluations; ``between``: of fitness and mean
        length over the evaluations. A search that was rewarded for length shows in the second.
    """
    rows = [row for row in run.store.summaries("search") if row.value is not None]
    within = [row.length_correlation for row in rows if row.length_correlation is not None]
    pairs = [(row.value, row.chars) for row in rows if row.chars is not None]
    varied = all(len(set(column)) > 1 for column in zip(*pairs, strict=True)) if len(pairs) > 2 else False
    return {
        "within": math.fsum(within) / len(within) if within else None,
        "between": float(stats.spearmanr(pairs).statistic) if varied else None,
    }


def judges(run: Run) -> list[dict[str, Any]]:
    """Who judged, and what it took: ``{setting, answers_as, calls, cached, prompt_tokens, completion_tokens, usd}``;
    ``usd`` is ``None`` where no price is known."""
    found = []
    spending = read_spending(run.folder / SPENDING_FILE)
    for setting, model in run.state.judges.items():
        spent = spending.get(setting, Spent()).to_dict()
        unknown = spent["calls"] and not spent["usd"]  # calls whose price nobody gave
        found.append({"setting": setting, "answers_as": model, **spent, "usd": None if unknown else spent["usd"]})
    return found


def utilisation(run: Run) -> list[dict[str, Any]]:
    """How busy each worker was while the run was worked on: ``{worker, busy_seconds, busy_share, peak_bytes}``."""
    return busy((share for row in run.store.summaries() for share in row.shares), run.state.sittings)


def busy(shares: Iterable[Share], sittings: Sequence[float]) -> list[dict[str, Any]]:
    """Busy seconds of each worker that finished something, and their share of the time that was worked.

    Attempts that were lost with their worker count as idle.

    A sitting is worked from the start of its first share to the end of its last, whoever did them; starting engines
    is before that and does not count, waiting for a judge or for the last of a generation is within.

    Args:
        shares: all that was done.
        sittings: when each sitting began, in Unix seconds, ascending.

    Returns:
        ``{"worker": index, "busy_seconds": ..., "busy_share": ..., "peak_bytes": ...}`` by index: the share in [0, 1],
        and the largest resident memory of its processes, 0 where unknown.
    """
    done: dict[int, list[Share]] = {}
    for share in shares:
        done.setdefault(bisect_right(sittings, share.started), []).append(share)
    window, seconds = 0.0, {share.worker: 0.0 for sitting in done.values() for share in sitting}
    for sitting in done.values():
        window += max(share.started + share.seconds for share in sitting) - min(share.started for share in sitting)
        for worker in seconds:
            seconds[worker] += _covered(share for share in sitting if share.worker == worker)
    return [
        {
            "worker": worker,
            "busy_seconds": spent,
            "busy_share": min(1.0, spent / window) if window > 0 else 0.0,
            "peak_bytes": max(one.peak_bytes for sitting in done.values() for one in sitting if one.worker == worker),
        }
        for worker, spent in sorted(seconds.items())
    ]


def _covered(shares: Iterable[Share]) -> float:
    """Seconds in which at least one of them was under way; a clock that was set back may let them overlap."""
    total, until = 0.0, -math.inf
    for share in sorted(shares, key=lambda share: share.started):
        end = share.started + share.seconds
        total += max(0.0, end - max(until, share.started))
        until = max(until, end)
    return total
