"""How long a run will take, how much memory and disk, from what the probe saw. Rough where it says so, and tested."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evolve.judge_costs import JudgeEstimate, answers_of, estimates
from evolve.judging import splits_of
from evolve.prepare import Prepared
from evolve.probe import Probe
from evolve.probe_scores import Scored
from workers.job import Split

# Driver, transcript and row of the history, per evaluation.
_BOOKKEEPING_SECONDS = 0.05


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        start_seconds: until all workers are ready, and warm.
        evaluation_seconds: of one evaluation on the search prompts, judging apart.
        search_seconds: of the search, workers side by side.
        total_seconds: of everything, start included. Judging goes on beside the engines: the slower of them counts,
            the judge only where it was measured.
        worker_bytes: resident memory of each worker's process.
        disk_bytes: of transcripts and history.
        judges: what each judge will be asked.
    """

    start_seconds: float
    evaluation_seconds: float
    search_seconds: float
    total_seconds: float
    worker_bytes: int
    disk_bytes: int
    judges: tuple[JudgeEstimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate(prepared: Prepared, probe: Probe, scored: Scored, *, disk_bytes: int) -> Estimate:
    """From one worker's measurements to the whole run.

    Args:
        prepared: the checked config.
        probe: what one worker did.
        scored: how its answers were scored, and what that took.
        disk_bytes: what will be written.
    """
    plan, config, workers = prepared.plan, prepared.config, prepared.workers
    repeats: Mapping[Split, int] = {"search": config.search.repeats, "validation": config.finalist_repeats}
    per_answer = probe.answer_seconds / len(prepared.prompts["search"])
    seconds = {
        split: probe.merge_seconds + per_answer * len(prepared.prompts[split]) * repeats[split] + _BOOKKEEPING_SECONDS
        for split in repeats
    }
    # A generation waits for its last candidate; parents and finalists are batches of their own.
    rounds = plan.generations * math.ceil(plan.popsize / workers) + math.ceil(plan.remainder / workers)
    search = rounds * seconds["search"]
    answers = answers_of(prepared)
    others = {
        split: answers[split] / (len(prepared.prompts[split]) * repeats[split])
        - (plan.search_evaluations if split == "search" else 0)
        for split in repeats
    }
    rest = sum(math.ceil(many / workers) * seconds[split] for split, many in others.items())
    judges = [
        one.measured(scored.spent[one.setting], scored.seconds, scored.answers)
        if one.setting in scored.spent and "search" in splits_of(one.setting, config)
        else one
        for one in estimates(prepared)
    ]
    start = probe.start_seconds + probe.warm_up_seconds
    return Estimate(
        start_seconds=start,
        evaluation_seconds=seconds["search"],
        search_seconds=search,
        total_seconds=start + max(search + rest, sum(one.seconds or 0.0 for one in judges)),
        worker_bytes=probe.peak_bytes,
        disk_bytes=disk_bytes,
        judges=tuple(judges),
    )
