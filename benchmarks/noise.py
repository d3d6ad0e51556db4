"""Whether the reported winner is really the better model, and whether its intervals hold the truth.

A landscape whose truth is known, searched by the real search and judged by the real finals; no engine is started:

    python benchmarks/noise.py                        # 20 seeds of each case
    python benchmarks/noise.py --seeds 200 --quiet    # coverage to within 3 points; the totals only

Each candidate has a quality that falls with the distance from an optimum. An answer's score is that quality, plus
what the prompt does to every candidate, plus what it does to this candidate alone, plus (--answer-noise) what differs
from answer to answer; as it is, or as 1 where it is above 0. Prompts are drawn from an endless supply, and the true
value of a candidate is its mean over all of them.

Prints, for each run, the true value of the reported winner, of the best observed in the search and of the
distribution mean; and in total how often the intervals hold the truth, plain ones and those that are reported, which
are to hold for all finalists at once.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy import stats

from evolve.budget import BudgetConfig, make_plan
from evolve.driver import Driver
from evolve.evaluation import Candidate, Evaluation, Summary
from evolve.finals import Standing, compare, finalists, leaders, standings
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.outcome import write_transcript
from evolve.progress import Silent
from evolve.search import search
from evolve.stopping import StopConditions
from fitness.aggregate import aggregate
from fitness.intervals import Difference, mean_interval, paired_difference
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scores import Score
from workers.job import Job, Split
from workers.models import Architecture
from workers.recipe import Recipe

PARENTS = ("one", "two", "three")
BOUNDS = (0.0, 1.0)
GENOME = Genome(
    GenomeConfig.model_validate(
        {"models": list(PARENTS), "base_model": "base", "merge_method": "task_arithmetic", "layer_granularity": 1}
    ),
    Architecture(2, ("e",), (("model.layers.0.x",), ("model.layers.1.x",)), ("h",)),
    out_dtype="bfloat16",
)


@dataclass(frozen=True)
class Case:
    """A landscape.

    Attributes:
        name: for the table.
        top: quality at the optimum.
        fall: how much lower the quality is at a distance of 0.5 in every coordinate; 0: all are equally good.
        parents: quality of the best parent; the others are a little worse.
        prompt, candidate: standard deviations over prompts: of what all candidates share, and of what each has alone.
        binary: scores are 0 or 1.
    """

    name: str
    top: float
    fall: float
    parents: float
    prompt: float
    candidate: float
    binary: bool

    def value(self, quality: float, noise: float) -> float:
        """The true value: the mean score over all prompts."""
        spread = math.hypot(self.prompt, self.candidate, noise)
        if self.binary:
            return float(stats.norm.cdf(quality / spread))
        # The mean of a normal variable that is cut off at 0 and 1.
        low, high = -quality / spread, (1 - quality) / spread
        norm = stats.norm
        within = quality * (norm.cdf(high) - norm.cdf(low)) - spread * (norm.pdf(high) - norm.pdf(low))
        return float(within + norm.sf(high))


CASES = (
    Case("continuous", top=0.65, fall=0.5, parents=0.5, prompt=0.15, candidate=0.15, binary=False),
    Case("continuous, nothing to find", top=0.5, fall=0.0, parents=0.5, prompt=0.1, candidate=0.2, binary=False),
    Case("continuous near 0", top=0.0, fall=0.5, parents=-0.1, prompt=0.1, candidate=0.15, binary=False),
    Case("shares", top=0.8, fall=2.0, parents=0.0, prompt=1.0, candidate=0.7, binary=True),
    Case("shares, nothing to find", top=0.0, fall=0.0, parents=0.0, prompt=0.3, candidate=1.0, binary=True),
    Case("shares near 0", top=-1.6, fall=2.0, parents=-2.2, prompt=0.8, candidate=0.8, binary=True),
    Case("shares next to 0", top=-2.6, fall=1.0, parents=-2.8, prompt=0.5, candidate=1.0, binary=True),
    Case("shares near 1", top=2.4, fall=2.0, parents=1.8, prompt=0.8, candidate=0.8, binary=True),
)


@dataclass(frozen=True)
class Options:
    """How much is searched and asked."""

    max_fevals: int = 80
    search_prompts: int = 40
    validation_prompts: int = 60
    top_k: int = 3
    repeats: int = 1
    search_repeats: int = 1
    answer_noise: float = 0.0


class Landscape:
    """Evaluates candidates as a worker and a scorer would: same prompts, and seeds of the answers, for all.

    Args:
        case: the landscape.
        seed: of the optimum, the prompts and the noise.
        options: numbers of prompts, and the noise from answer to answer.
        folder: for the transcripts of the validation split.
    """

    def __init__(self, case: Case, seed: int, options: Options, folder: Path) -> None:
        rng = np.random.default_rng(seed)
        self._case, self._seed, self._noise, self._folder = case, seed, options.answer_noise, folder
        prompts: dict[Split, int] = {"search": options.search_prompts, "validation": options.validation_prompts}
        self._optimum = rng.uniform(0.25, 0.75, size=GENOME.dimensions)
        self._shared = {split: case.prompt * rng.standard_normal(count) for split, count in prompts.items()}
        self._questions = {
            split: [Prompt(f"{split}-{i}", (Message("user", "?"),), (), split) for i in range(count)]
            for split, count in prompts.items()
        }

    def quality(self, candidate: Candidate) -> float:
        if candidate.genotype is None:
            return self._case.parents - 0.1 * PARENTS.index(candidate.label) * (self._case.fall > 0)
        distance = float(np.mean((np.array(candidate.genotype) - self._optimum) ** 2))
        return self._case.top - self._case.fall * distance / 0.25

    def truth(self, candidate: Candidate) -> float:
        return self._case.value(self.quality(candidate), self._noise)

    def evaluate(self, candidate: Candidate) -> Evaluation:
        shared = self._shared[candidate.split]
        # A model answers a prompt as it does, however often it is evaluated.
        rng = np.random.default_rng([self._seed, int(candidate.recipe.hash, 16), candidate.split == "search"])
        own = self.quality(candidate) + shared + self._case.candidate * rng.standard_normal(len(shared))
        raw = own + self._noise * rng.standard_normal((candidate.repeats, len(shared)))
        values = (raw > 0).astype(float) if self._case.binary else raw.clip(0, 1)
        asked = self._questions[candidate.split] * candidate.repeats
        scores = [Score(prompt.id, float(v), {}, {}) for prompt, v in zip(asked, values.ravel(), strict=True)]
        row = Evaluation(candidate, aggregate(scores, min_scored_share=1.0), {}, None)
        if candidate.split == "search":
            return row
        answers = [(prompt, Response(prompt.id, "", 0, "stop"), s) for prompt, s in zip(asked, scores, strict=True)]
        job = Job(candidate.key, candidate.recipe, candidate.split, candidate.repeats)
        return replace(row, transcript=write_transcript(self._folder, job, row.result, {}, answers).name)


@dataclass(frozen=True)
class Closed:
    """A run that has ended.

    Attributes:
        world: knows the truth.
        finalists, parents: as the closing table has them.
        observed: the best in the search.
        mean: the distribution mean.
    """

    world: Landscape
    finalists: list[Standing]
    parents: list[Standing]
    observed: Candidate
    mean: Candidate

    def truth(self, standing: Standing) -> float:
        assert standing.validation is not None
        return self.world.truth(standing.validation.candidate)


@dataclass(frozen=True)
class Report:
    """What a run reports, beside the truth.

    Attributes:
        winner, observed, mean: true values of the winner, of the best in the search, and of the distribution mean.
        optimism: search minus validation fitness of the winner.
        bias: its validation fitness minus its true value.
        holds: per interval and way of making it, whether it holds the truth; of finalists, whether all do.
        wrong: per way, whether the winner is called better than a parent or a finalist that is at least as good.
    """

    winner: float
    observed: float
    mean: float
    optimism: float
    bias: float
    holds: dict[tuple[str, str], bool]
    wrong: dict[str, bool]


def play(case: Case, seed: int, options: Options) -> Closed:
    """Search, choose the finalists, validate."""
    with tempfile.TemporaryDirectory(prefix="noise-") as name:
        folder = Path(name)
        world = Landscape(case, seed, options, folder)
        rows: list[Evaluation] = []

        def evaluate(candidates: Sequence[Candidate]) -> list[Evaluation]:
            found = [world.evaluate(candidate) for candidate in candidates]
            rows.extend(found)
            return found

        plan = make_plan(
            dimensions=GENOME.dimensions,
            budget=BudgetConfig(max_fevals=options.max_fevals),
            workers=1,
            noisy=False,
            baseline_models=len(PARENTS),
            top_k=options.top_k,
        )
        searched = search(
            GENOME,
            plan,
            Driver(GENOME.x0, sigma0=0.25, popsize=plan.popsize, seed=seed),
            StopConditions(target_fitness=None, min_sigma=1e-4, stagnation_generations=20, max_seconds=None),
            evaluate,
            repeats=options.search_repeats,
            stored=lambda _: None,
            kept=lambda _, asked: asked,
            drifted=lambda _: None,
            seconds=lambda: 0.0,
            progress=Silent(),
        )
        by_key = {row.candidate.key: row for row in rows}
        summaries = [summary(row) for row in rows]
        chosen = finalists(
            GENOME,
            summaries,
            searched.mean,
            get=by_key.get,
            top_k=options.top_k,
            repeats=options.repeats,
            search_repeats=options.search_repeats,
        )
        evaluate(chosen)
        evaluate([parent(index, options.repeats) for index in range(len(PARENTS))])
        return Closed(
            world,
            standings(rows, folder, "finalist", bounds=BOUNDS),
            standings(rows, folder, "parent", bounds=BOUNDS),
            by_key[leaders(summaries)[0].key].candidate,
            next(c for c in chosen if c.split == "validation"),
        )


def parent(index: int, repeats: int) -> Candidate:
    label = PARENTS[index]
    recipe = Recipe({"merge_method": "passthrough", "models": [{"model": label}]})
    return Candidate(f"parent-{index:02d}-validation", "parent", label, recipe, "validation", repeats)


def summary(row: Evaluation) -> Summary:
    c = row.candidate
    return Summary(c.key, c.kind, c.split, c.generation, c.index, c.recipe.hash, row.value, {}, ())


def look(closed: Closed) -> Report:
    """Compare what is reported with the truth."""
    winner, *rivals = closed.finalists
    value = closed.truth(winner)
    best_parent = max(closed.parents, key=lambda one: one.value or 0.0)
    assert winner.ci95 is not None
    assert winner.value is not None
    assert winner.search is not None
    assert winner.search.value is not None
    scores = list(winner.scores.values())
    holds: dict[tuple[str, str], bool] = {}
    wrong: dict[str, bool] = {}
    for way, interval in (("plain", mean_interval(scores, bounds=BOUNDS)), ("reported", winner.ci95)):
        holds["its value", way] = interval[0] <= value <= interval[1]

        def minus(other: Standing, way: str = way) -> Difference:
            if way == "plain":
                return paired_difference(scores, list(other.scores.values()), bounds=BOUNDS)
            found = compare(winner, other, picked_from=len(closed.finalists), bounds=BOUNDS)
            assert found is not None
            return found

        differences = {id(one): (minus(one), value - closed.truth(one)) for one in (*closed.parents, *rivals)}

        def held(*others: Standing, found: dict[int, tuple[Difference, float]] = differences) -> bool:
            return all(d.low <= truth <= d.high for d, truth in (found[id(one)] for one in others))

        holds["its lead on the best parent", way] = held(best_parent)
        holds["its leads on all parents", way] = held(*closed.parents)
        holds["its leads on all finalists", way] = held(*rivals)
        wrong[way] = any(d.low > 0 and truth <= 0 for d, truth in differences.values())
    return Report(
        winner=value,
        observed=closed.world.truth(closed.observed),
        mean=closed.world.truth(closed.mean),
        optimism=winner.search.value - winner.value,
        bias=winner.value - value,
        holds=holds,
        wrong=wrong,
    )


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def mean_with_interval(values: Sequence[float]) -> str:
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def print_totals(reports: Sequence[Report]) -> None:
    for name, others in (("best observed", [r.observed for r in reports]), ("mean", [r.mean for r in reports])):
        gains = [r.winner - other for r, other in zip(reports, others, strict=True)]
        print(
            f"  true value of the winner minus that of the {name}: {mean_with_interval(gains)};"
            f" better in {share([g > 0 for g in gains]):.0%}, worse in {share([g < 0 for g in gains]):.0%} of runs"
        )
    print(
        "  optimism (search minus validation fitness of the winner): "
        + mean_with_interval([r.optimism for r in reports])
    )
    print(
        f"  validation fitness of the winner minus its true value:    {mean_with_interval([r.bias for r in reports])}"
    )
    for what in dict.fromkeys(name for name, _ in reports[0].holds):
        plain, reported = (share([r.holds[what, way] for r in reports]) for way in ("plain", "reported"))
        print(f"  95% interval of {what:<27}: plain holds in {plain:6.1%}, reported in {reported:6.1%}")
    plain, reported = (share([r.wrong[way] for r in reports]) for way in ("plain", "reported"))
    print(f"  called better than what is as good or better   : plain in {plain:6.1%}, reported in {reported:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quiet", action="store_true", help="totals only")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="default: all")
    for field in fields(Options):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = parser.parse_args()
    options = Options(**{field.name: getattr(given, field.name) for field in fields(Options)})
    everything: list[Report] = []
    for case in CASES:
        if given.case and case.name not in given.case:
            continue
        print(f"{case.name}:")
        reports = []
        for seed in range(given.seeds):
            report = look(play(case, seed, options))
            reports.append(report)
            if not given.quiet:
                missed = [what for (what, way), held in report.holds.items() if way == "reported" and not held]
                print(
                    f"  seed {seed}: true value of winner {report.winner:.4f}, best observed {report.observed:.4f}, "
                    f"mean {report.mean:.4f}" + (f"; missed by the interval of {', '.join(missed)}" if missed else "")
                )
        print_totals(reports)
        everything += reports
    print("all cases:")
    print_totals(everything)


if __name__ == "__main__":
    main()
