"""How far a judge agrees with people, with itself, and with the length of what it judges.

Every number is ``None`` where it is undefined, never NaN. Intervals are 95% percentile intervals of the bootstrap over
answers (Efron 1979, Annals of Statistics 7:1-26) with a fixed seed; below 10 answers there is none, since so few
claim too much when they are resampled.

Krippendorff's alpha is the one with the interval distance (Krippendorff 2011, "Computing Krippendorff's
Alpha-Reliability"): 1 where raters agree exactly, 0 where they agree as by chance, below 0 where they contradict. Where
all labels are equal there is nothing to agree on, and it is undefined.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from nltk.metrics.agreement import AnnotationTask
from nltk.metrics.distance import interval_distance
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 1000
FEWEST_FOR_A_VALUE, FEWEST_FOR_AN_INTERVAL = 3, 10
_SHARE_DEFINED = 0.95
_MOST_DISTINCT_LABELS = 1000


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted.

    Attributes:
        value: ``None`` where it is undefined: fewer than 3 pairs, or a column in which all is equal.
        ci95: 95% interval; ``None`` below 10 pairs, and where too many resamples leave the number undefined.
    """

    value: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with people.

    Attributes:
        pairs: number of answers that both scored.
        spearman: rank correlation in [-1, 1]: whether they put the answers in the same order.
        kendall: tau-b in [-1, 1], the same from pairs of answers, with ties taken into account.
        alpha: Krippendorff's alpha in [-1, 1], the judge and the mean of the people as two raters. Unlike the
            correlations it asks for equal numbers, and means something only where both use the same scale.
        mean_difference: mean of judge minus people, in points: how lenient the judge is. Same scale, too.
    """

    pairs: int
    spearman: Estimate
    kendall: Estimate
    alpha: Estimate
    mean_difference: Estimate


@dataclass(frozen=True)
class Retest:
    """How far a judge agrees with itself on answers that it judged several times.

    Attributes:
        answers: number of answers with at least two scores.
        mean_abs_difference: in points, between two scores of an answer, the mean over answers.
        spread: in points, the root of the mean variance within an answer (standard error of measurement).
        alpha: Krippendorff's alpha of the repetitions as raters; undefined where all scores are equal.
        equal_share: share of answers in [0, 1] whose scores are all the same.
        differences: number of pairs of scores of one answer by their rounded distance in points.
    """

    answers: int
    mean_abs_difference: float
    spread: float
    alpha: float | None
    equal_share: float
    differences: Mapping[int, int]


@dataclass(frozen=True)
class LengthPreference:
    """How far scores follow the length of the answers.

    Attributes:
        spearman: rank correlation of score and number of characters, in [-1, 1].
        per_doubling: points that an answer gains when its length doubles, by least squares; with human labels only
            what the judge gives beyond them. ``None`` where the lengths do not vary enough to tell.
    """

    spearman: Estimate
    per_doubling: float | None


def agreement(judge: Sequence[float], human: Sequence[float]) -> Agreement:
    """Compares a judge with people.

    Args:
        judge: its score per answer.
        human: the mean label per answer, in the same order.

    Raises:
        ValueError: they are not as many, or not all finite numbers.
    """
    a, b = _columns(judge, human)
    return Agreement(
        pairs=len(a),
        spearman=_estimate(_spearman, a, b),
        kendall=_estimate(_kendall, a, b),
        alpha=_estimate(_alpha_of_two, a, b),
        mean_difference=_estimate(lambda differences: float(differences.mean()), a - b),
    )


def raters_alpha(ratings: Sequence[Mapping[str, float]]) -> float | None:
    """Krippendorff's alpha of people among themselves: the agreement that a judge can be compared with.

    Args:
        ratings: per answer the labels by rater; not everybody has to label everything.

    Raises:
        ValueError: a label is not a finite number.
    """
    return _alpha([list(labels.values()) for labels in ratings])


def retest(samples: Sequence[Sequence[float]]) -> Retest | None:
    """Compares the scores that a judge gave when it was asked several times.

    Args:
        samples: the scores of each answer, in points.

    Returns:
        ``None`` where no answer has two scores.

    Raises:
        ValueError: a score is not a finite number.
    """
    repeated = [_columns(scores)[0] for scores in samples if len(scores) > 1]
    if not repeated:
        return None
    distances = [[abs(float(a - b)) for a, b in combinations(scores, 2)] for scores in repeated]
    return Retest(
        answers=len(repeated),
        mean_abs_difference=_mean([_mean(of_one) for of_one in distances]),
        spread=math.sqrt(_mean([float(scores.var(ddof=1)) for scores in repeated])),
        alpha=_alpha([scores.tolist() for scores in repeated]),
        equal_share=sum(not any(of_one) for of_one in distances) / len(repeated),
        differences=dict(sorted(Counter(_rounded(one) for of_one in distances for one in of_one).items())),
    )


def histogram(scores: Sequence[float], low: float, high: float) -> dict[int | str, int]:
    """Counts scores by the nearest point of the scale; halves are rounded up.

    Args:
        scores: in points.
        low: the worst score there is.
        high: the best.

    Returns:
        Every point from ``low`` to ``high``, and ``"outside"`` where some scores lie beyond them.

    Raises:
        ValueError: a score is not a finite number.
    """
    points = range(_rounded(low), _rounded(high) + 1)
    counts: dict[int | str, int] = dict.fromkeys(points, 0)
    for score in _columns(scores)[0]:
        point = _rounded(float(score))
        name = point if point in points else "outside"
        counts[name] = counts.get(name, 0) + 1
    return counts


def length_preference(
    scores: Sequence[float], chars: Sequence[int], human: Sequence[float] | None = None
) -> LengthPreference:
    """Measures how far scores follow length.

    Args:
        scores: per answer, in points.
        chars: number of characters per answer.
        human: the mean label per answer. With it, ``per_doubling`` is the slope on length at equal labels: what the
            judge gives for length and people do not. Labels that are noisy explain too little, and leave some of what
            people give as well.

    Raises:
        ValueError: they are not as many, or not all finite numbers.
    """
    y, lengths = _columns(scores, chars)
    doublings = np.log2(np.maximum(lengths, 1))
    others = [np.ones_like(y)]
    if human is not None:
        others.append(_columns(scores, human)[1])
    return LengthPreference(_estimate(_spearman, y, lengths), _slope(y, doublings, np.column_stack(others)))


def _slope(y: Floats, x: Floats, others: Floats) -> float | None:
    """Coefficient of x, (n,), in the regression of y on x and others, (n, k) (Frisch and Waugh 1933)."""
    if len(y) < FEWEST_FOR_A_VALUE or len(y) <= others.shape[1] + 1:
        return None
    residual = x - others @ np.linalg.lstsq(others, x)[0]
    power = float(residual @ residual)
    # What is left of a length that the other columns explain is rounding.
    if power <= 1e-12 * float(x @ x):
        return None
    return _finite(float(residual @ y) / power)


def _spearman(a: Floats, b: Floats) -> float:
    return float(stats.spearmanr(a, b).statistic)


def _kendall(a: Floats, b: Floats) -> float:
    return float(stats.kendalltau(a, b, method="asymptotic").statistic)


def _estimate(statistic: Callable[..., float], *columns: Floats) -> Estimate:
    """A statistic of columns, each (n,), that gives NaN where it is undefined."""
    n = len(columns[0])
    if n < FEWEST_FOR_A_VALUE:
        return Estimate(None, None)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = _finite(statistic(*columns))
        if value is None or n < FEWEST_FOR_AN_INTERVAL:
            return Estimate(value, None)
        drawn = rng.integers(0, n, size=(RESAMPLES, n))
        resampled = np.array([statistic(*(column[rows] for column in columns)) for rows in drawn])
    return Estimate(value, _percentiles(resampled))


def _percentiles(resampled: Floats) -> tuple[float, float] | None:
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < _SHARE_DEFINED * len(resampled):
        return None
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def _alpha_of_two(a: Floats, b: Floats) -> float:
    """What :func:`_alpha` gives for two complete columns, in one line: quick enough to be resampled."""
    both = np.concatenate([a, b])
    return float(1 - ((a - b) ** 2).mean() / (2 * both.var(ddof=1))) if np.ptp(both) else math.nan


def _alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Alpha over the units that were rated at least twice."""
    rated = [unit for unit in units if len(unit) > 1]
    if not rated:
        return None
    labels = _columns([label for unit in rated for label in unit])[0]
    low, width = float(labels.min()), float(np.ptp(labels))
    if not 0 < width < math.inf:
        return None
    # Alpha is the same on any scale. The library compares every label with every other: so many digits are enough.
    labels = (labels - low) / width
    if len(np.unique(labels)) > _MOST_DISTINCT_LABELS:
        labels = np.round(labels * _MOST_DISTINCT_LABELS) / _MOST_DISTINCT_LABELS
    values = iter(labels.tolist())
    triples = [(rater, item, next(values)) for item, unit in enumerate(rated) for rater, _ in enumerate(unit)]
    return _finite(float(AnnotationTask(triples, distance=interval_distance).alpha()))


def _columns(*columns: Sequence[float]) -> tuple[Floats, ...]:
    arrays = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"expected as many numbers in each column, found {[len(column) for column in columns]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("expected finite numbers, found NaN or infinity")
    return arrays


def _rounded(score: float) -> int:
    return math.floor(score + 0.5)


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
