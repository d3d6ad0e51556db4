"""How sure a mean over prompts is, and whether one model beats another on the same prompts.

The bootstrap only knows the values it has seen: from twenty equal scores it concludes that the mean is certain.
Therefore:

- Scores that are all 0 or 1 are shares, and get the exact interval (Clopper and Pearson 1934, Biometrika
  26:404-413). Wilson's is shorter, but fails near 0 for the best of several models: of four with a true share
  of 0.005 on 20 prompts, simultaneous intervals of Wilson's kind hold it in 67% of cases. A difference of two
  shares on the same prompts gets Newcombe's square-and-add interval, made of two Wilson intervals and their
  correlation (Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10).
- Other scores get the bootstrap (BCa, ``scipy.stats.bootstrap``), its confidence raised so that it is not too
  short for few prompts (Hesterberg 2015, The American Statistician 69:371-386, "expanded percentiles").
- Where fewer than five values differ from the commonest one, the bootstrap has too little to resample. Its
  interval is then widened by what can be said without it: the share of prompts with another value is at most
  the exact upper limit, and those prompts may score anything within the bounds. Equal values, and fewer
  than six prompts, always fall under this rule; one prompt gives a wide interval, never a point.

An interval of the best of several models, picked by these very scores, must hold whichever is picked: see
:func:`simultaneous`.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Bounds = tuple[float, float]
Floats = NDArray[np.float64]

RESAMPLES = 9999
_FEWEST_DIFFERING = 5
_DRAWS_OUTSIDE, _MOST_RESAMPLES = 40, 99_999  # an end of the interval must not hang on one or two draws
_NUMBERS_AT_ONCE = 2_000_000  # 16 MB of float64


@dataclass(frozen=True)
class Difference:
    """How much better ``a`` is than ``b`` on the same prompts.

    Attributes:
        mean: mean of ``a - b``.
        low: lower end of its interval.
        high: upper end of its interval.
        p_better: probability in (0, 1) that ``a`` is better in the mean over all prompts like these: the
            Bayesian bootstrap (Rubin 1981, Annals of Statistics 9:130-134) over the observed differences and
            two imagined prompts, one won and one lost by the widest margin. Equal scores give 0.5, and
            n clear wins out of n give ``1 - 0.5 ** (n + 1)``, not 1. It is about this one pair: where ``a`` was
            picked as the best of several it knows nothing of that, and the interval decides.
    """

    mean: float
    low: float
    high: float
    p_better: float

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


def simultaneous(count: int, confidence: float = 0.95) -> float:
    """The confidence that each of several intervals needs for all of them to hold at once (Bonferroni).

    What holds for all models holds for the one that is picked, whatever picks it: Andrews, Kitagawa and McCloskey
    2024, "Inference on Winners", Quarterly Journal of Economics 139:305-358 (projection intervals).

    Args:
        count: number of intervals.
        confidence: of all together, in (0, 1).
    """
    return 1 - (1 - confidence) / max(count, 1)


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, seed: int = 0, *, bounds: Bounds | None = None
) -> Bounds:
    """An interval for the mean of scores; the module's docstring says which kind when.

    Args:
        values: one score per prompt.
        confidence: in (0, 1).
        seed: seed of the bootstrap.
        bounds: least and greatest score there can be; none: (0, 1), or (-1, 1) where a score is negative.
            Give it for a fitness with penalties, and for quantities other than scores.

    Returns:
        The lower and the upper end, with the mean between them, within the bounds.

    Raises:
        ValueError: no values, or one outside the bounds or not a number.
    """
    scores = np.asarray(values, dtype=np.float64)
    bounds = _checked(scores, bounds)
    if bounds == (0, 1) and np.isin(scores, (0, 1)).all():
        return _share_interval(int(scores.sum()), len(scores), confidence)
    return _interval(scores, confidence, seed, bounds)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    bounds: Bounds | None = None,
) -> Difference:
    """Compares two models by their scores on the same prompts; the module's docstring says how.

    Args:
        a: one score per prompt.
        b: the other model's scores, prompt by prompt.
        confidence: in (0, 1).
        seed: seed of the bootstrap.
        bounds: as in :func:`mean_interval`.

    Raises:
        ValueError: no values, of unequal number, outside the bounds or not numbers.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired scores must be as many on both sides, found {len(a)} and {len(b)}")
    both = np.concatenate([first, second])
    bounds = _checked(both, bounds)
    differences = first - second
    widest = bounds[1] - bounds[0]
    if bounds == (0, 1) and np.isin(both, (0, 1)).all():
        low, high = _newcombe(first, second, confidence)
    else:
        low, high = _interval(differences, confidence, seed, (-widest, widest))
    return Difference(_mean(differences), low, high, _p_better(differences, widest, seed))


def _checked(scores: Floats, bounds: Bounds | None) -> Bounds:
    if scores.size == 0:
        raise ValueError("an interval needs at least one value")
    if bounds is None:
        bounds = (-1.0, 1.0) if scores.min() < 0 else (0.0, 1.0)
    # Written so that NaN fails too.
    if not (scores.min() >= bounds[0] and scores.max() <= bounds[1]):
        raise ValueError(
            f"values from {scores.min():g} to {scores.max():g} are outside the bounds {bounds[0]:g} to"
            f" {bounds[1]:g}; pass the bounds of what is measured"
        )
    return bounds


def _share_interval(successes: int, total: int, confidence: float, method: str = "exact") -> Bounds:
    interval = stats.binomtest(successes, total).proportion_ci(confidence, method=method)
    share = successes / total
    return min(float(interval.low), share), max(float(interval.high), share)


def _interval(values: Floats, confidence: float, seed: int, bounds: Bounds) -> Bounds:
    mean = _mean(values)
    low, high = mean, mean
    commonest, count = Counter(values.tolist()).most_common(1)[0]
    differing = len(values) - count
    if differing:
        low, high = _bootstrap(values, confidence, seed)
    if differing < _FEWEST_DIFFERING:
        share = _share_interval(differing, len(values), confidence)[1]
        low = min(low, (1 - share) * commonest + share * bounds[0])
        high = max(high, (1 - share) * commonest + share * bounds[1])
    return max(bounds[0], min(low, mean)), min(bounds[1], max(high, mean))


def _bootstrap(values: Floats, confidence: float, seed: int) -> Bounds:
    n = len(values)
    # As wide as Student's t would be, and free of the bias of a variance that is divided by n (Hesterberg).
    outside = float(2 * stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf((1 - confidence) / 2, n - 1)))
    resamples = int(min(max(RESAMPLES, _DRAWS_OUTSIDE / max(outside, sys.float_info.min)), _MOST_RESAMPLES))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # BCa has no answer for some samples (NaN, with a warning); the percentiles always have.
            warnings.simplefilter("ignore")
            interval = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=resamples,
                batch=max(1, _NUMBERS_AT_ONCE // n),
                confidence_level=1 - outside,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high)


def _newcombe(a: Floats, b: Floats, confidence: float) -> Bounds:
    """Interval of the difference of two shares on the same prompts, a and b: (n,) of 0 and 1."""
    n = len(a)
    both, only_a = int((a * b).sum()), int((a * (1 - b)).sum())
    only_b, neither = int((b * (1 - a)).sum()), int(((1 - a) * (1 - b)).sum())
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = _share_interval(both + only_a, n, confidence, "wilson")
    low_b, high_b = _share_interval(both + only_b, n, confidence, "wilson")
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    agreement = float(both * neither - only_a * only_b)
    if agreement > 0:
        agreement = max(0.0, agreement - n / 2)  # the continuity correction that makes it method 10
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def reach(of_a: float, of_b: float) -> float:
        return math.sqrt(max(0.0, of_a**2 - 2 * phi * of_a * of_b + of_b**2))

    difference = share_a - share_b
    low = difference - reach(share_a - low_a, high_b - share_b)
    high = difference + reach(high_a - share_a, share_b - low_b)
    return max(-1.0, low), min(1.0, high)


def _p_better(differences: Floats, widest: float, seed: int) -> float:
    # Weights of the Bayesian bootstrap are exponential draws over their sum; the sum changes no sign.
    imagined = np.concatenate([differences, [widest, -widest]])
    rng = np.random.default_rng(seed)
    better, left = 0, RESAMPLES
    while left:
        rows = min(left, max(1, _NUMBERS_AT_ONCE // len(imagined)))
        better += int((rng.standard_exponential((rows, len(imagined))) @ imagined > 0).sum())
        left -= rows
    # So many draws tell no probability nearer to 0 or 1 than this.
    return (better + 0.5) / (RESAMPLES + 1)


def _mean(values: Floats) -> float:
    return float(np.clip(values.mean(), values.min(), values.max()))
