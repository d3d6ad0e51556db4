"""What the fitness makes of the parents' answers in the probe, and what so many prompts can show at that noise."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from evolve.judging import Judging
from evolve.probe import Asked
from fitness.aggregate import Fitness, aggregate, prompt_means
from fitness.errors import ScoringFailed
from fitness.findings import Finding
from fitness.metrics import Term
from fitness.power import Noise, paired_noise, power_finding
from fitness.scores import Score
from fitness.spending import Spent


@dataclass(frozen=True)
class Marks:
    """How one model's answers were scored.

    Attributes:
        model: its name.
        scores: one per answer.
        fitness: their mean; ``None`` where too few could be scored.
        failure: why there is none.
    """

    model: str
    scores: Sequence[Score]
    fitness: Fitness | None
    failure: str = ""


@dataclass(frozen=True)
class Scored:
    """How all were scored, and what it took.

    Attributes:
        marks: per model.
        seconds: wall seconds of scoring.
        spent: by the dotted path of a judge's settings, what it was asked meanwhile.
    """

    marks: Sequence[Marks]
    seconds: float
    spent: Mapping[str, Spent]

    @property
    def answers(self) -> int:
        """How many answers there were."""
        return sum(len(one.scores) for one in self.marks)


def score_answers(asked: Sequence[Asked], stage: Judging, *, min_scored_share: float) -> Scored:
    """Scores the answers that were given under the run's own settings, as the search will.

    Args:
        asked: what the models answered.
        stage: the run's judges.
        min_scored_share: fewest scored answers, as a share.

    Raises:
        JudgeStopped: the judge cannot or may not be asked any more.
    """
    before = {setting: judge.spent for setting, judge in stage.judges.items()}
    begun = time.monotonic()
    own = [one for one in asked if one.of_run]
    tasks = [stage.submit(stage.scorers["search"].score(one.prompts, one.responses)) for one in own]
    marks = [_marks(one.model, task.result(), min_scored_share) for one, task in zip(own, tasks, strict=True)]
    seconds = time.monotonic() - begun
    return Scored(marks, seconds, {name: judge.spent.since(before[name]) for name, judge in stage.judges.items()})


def score_findings(
    scored: Scored, terms: Sequence[Term], *, validation_prompts: int, wanted: float, caveat: str = ""
) -> list[Finding]:
    """A finding per model, and one on what the prompts can show.

    Args:
        scored: from :func:`score_answers`.
        terms: of the fitness.
        validation_prompts: how many decide in the end.
        wanted: the least difference of fitness that the user wants to see.
        caveat: to be added to what the prompts can show.
    """
    still = still_terms(scored.marks, terms)
    power = power_finding(largest_noise(scored.marks), validation_prompts, wanted=wanted, still=still)
    return [*map(_finding, scored.marks), replace(power, message=f"{power.message}{caveat}")]


def still_terms(marks: Sequence[Marks], terms: Sequence[Term]) -> dict[str, float]:
    """The terms that did not vary over the answers of any model, with their share of the score's weight."""
    total = sum(abs(one.weight) for one in terms)
    found = {}
    for term in terms:
        values = [{score.parts.get(term.label) for score in one.scores} for one in marks if one.scores]
        if term.weight and values and all(len(distinct) == 1 for distinct in values):
            found[term.label] = abs(term.weight) / total
    return found


def largest_noise(marks: Sequence[Marks]) -> Noise | None:
    """The noise between those two models that differ most unevenly; ``None`` where no two can be compared."""
    means = [prompt_means((score.prompt_id, score.value) for score in one.scores) for one in marks]
    noises = []
    for a, b in combinations(means, 2):
        both = [name for name in a if name in b]
        noises.append(paired_noise([a[name] for name in both], [b[name] for name in both]))
    return max((one for one in noises if one is not None), key=lambda one: one.deviation, default=None)


def _marks(model: str, scores: Sequence[Score], min_scored_share: float) -> Marks:
    try:
        return Marks(model, scores, aggregate(scores, min_scored_share=min_scored_share))
    except ScoringFailed as error:
        return Marks(model, scores, None, str(error))


def _finding(marks: Marks) -> Finding:
    check, one = "answers-scored", marks.fitness
    if one is None:
        remedy = "Try the judge alone with evolve judge ask; as it is, evaluations of the run would fail."
        return Finding(check, "error", marks.model, f"Its answers cannot be scored: {marks.failure}.", remedy)
    text = f"Fitness {one.value:.3f}, standard error {one.stderr:.3f}, on {one.scored} of {one.total} answers."
    if one.scored < one.total:
        text += " The others are unscored."
    return Finding(check, "ok", marks.model, text, evidence=one.to_dict())
