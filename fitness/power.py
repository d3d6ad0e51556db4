"""How small a difference some number of prompts can show, and how many prompts a difference needs.

The comparison is Student's paired t test, two-sided: mean of the differences over its standard error. Its power is
that of the noncentral t distribution (Cohen 1988, "Statistical Power Analysis", ch. 2); the textbook's form of it is

    difference = deviation / sqrt(prompts) * (t[1 - alpha/2; prompts - 1] + t[power; prompts - 1])

which is used here; at a power of 80% it is right within 0.01 from 5 prompts on. Differences of scores that are mostly
0 or 1 are not normal, but their means soon are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
from scipy import stats

from fitness.findings import Finding

POWER, ALPHA = 0.8, 0.05
WANTED = 0.05
MOST_PROMPTS = 10**9
_SURE_OF_DEVIATION = 0.9


def detectable_difference(deviation: float, prompts: int, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The least difference of two models' means that is found with the given probability.

    Args:
        deviation: standard deviation of the paired differences, prompt by prompt, in the units of the score.
        prompts: how many both models answer, at least 2.
        power: probability in [0.5, 1) that such a difference is found significant.
        alpha: probability in (0, 1) that no difference is.

    Raises:
        ValueError: outside these limits.
    """
    if not (deviation >= 0 and math.isfinite(deviation)):
        raise ValueError(f"a standard deviation is finite and not negative, got {deviation}")
    if prompts < 2:
        raise ValueError(f"a difference needs at least 2 prompts, got {prompts}")
    if not (0.5 <= power < 1 and 0 < alpha < 1):
        raise ValueError(f"power must be in [0.5, 1) and alpha in (0, 1), got {power} and {alpha}")
    freedom = prompts - 1
    return deviation / math.sqrt(prompts) * float(stats.t.isf(alpha / 2, freedom) + stats.t.ppf(power, freedom))


def prompts_needed(deviation: float, difference: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """The fewest prompts with which such a difference is found; the inverse of :func:`detectable_difference`.

    Args:
        deviation: standard deviation of the paired differences.
        difference: of the means, above 0.
        power: as above.
        alpha: as above.

    Returns:
        At least 2, at most ``MOST_PROMPTS``.

    Raises:
        ValueError: outside these limits.
    """
    if not difference > 0:
        raise ValueError(f"a difference to find is above 0, got {difference}")

    def enough(prompts: int) -> bool:
        return detectable_difference(deviation, prompts, power=power, alpha=alpha) <= difference

    low, high = 1, 2  # low is too few, high enough
    while high < MOST_PROMPTS and not enough(high):
        low, high = high, min(2 * high, MOST_PROMPTS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Noise:
    """How much two models' scores differ from prompt to prompt.

    Attributes:
        deviation: sample standard deviation of the paired differences.
        high: upper limit of the true one (chi-square, one-sided 90%), for a probe is small.
        prompts: how many were compared.
    """

    deviation: float
    high: float
    prompts: int


def paired_noise(a: Sequence[float], b: Sequence[float]) -> Noise | None:
    """The noise between two models.

    Args:
        a: one score per prompt.
        b: the other model's, prompt by prompt.

    Returns:
        ``None`` where fewer than two prompts, or equal differences, tell nothing.

    Raises:
        ValueError: they are not equally many.
    """
    if len(a) != len(b):
        raise ValueError(f"paired scores must be as many on both sides, found {len(a)} and {len(b)}")
    if len(a) < 2:
        return None
    deviation = float(np.std(np.subtract(a, b), ddof=1))
    if deviation < 1e-12:
        return None
    freedom = len(a) - 1
    high = deviation * math.sqrt(freedom / float(stats.chi2.isf(_SURE_OF_DEVIATION, freedom)))
    return Noise(deviation, high, len(a))


def power_finding(
    noise: Noise | None,
    prompts: int,
    *,
    wanted: float = WANTED,
    where: str = "prompts.files",
    still: Mapping[str, float] = MappingProxyType({}),
) -> Finding:
    """What the number of prompts can show at the noise that was seen, and at what was not seen.

    Args:
        noise: of the probe, largest over the pairs of models; ``None`` where nothing is known.
        prompts: in the split that decides, validation as a rule.
        wanted: the difference that the user would like to see, in units of the fitness.
        where: for the finding.
        still: by name the terms that did not vary over the answers of any model, with their share of the score's
            weight: better models will differ in them from prompt to prompt, which the noise does not know. Where two
            models are right on half of the prompts each, independently, 0 or 1 a prompt, their differences have a
            standard deviation of sqrt(1/2).
    """
    if prompts < 2:
        return Finding("power", "note", where, "with so few prompts it cannot be said how small a gain can be shown")
    unseen = sum(still.values()) * math.sqrt(0.5)
    if noise is None and not unseen:
        text = (
            "the models' scores differ by the same on every prompt, so it cannot be said how small a gain can be shown"
        )
        return Finding("power", "note", where, text)
    seen = Noise(0.0, 0.0, 0) if noise is None else noise
    worst = math.hypot(seen.high, unseen)
    least, cautious = detectable_difference(seen.deviation, prompts), detectable_difference(worst, prompts)
    needed, most = prompts_needed(seen.deviation, wanted), prompts_needed(worst, wanted)
    evidence = {
        **asdict(seen),
        "still_terms": dict(still),
        "prompts_at_hand": prompts,
        "detectable": least,
        "detectable_at_worst": cautious,
        "wanted": wanted,
        "prompts_needed": needed,
        "prompts_needed_at_worst": most,
        "power": POWER,
        "alpha": ALPHA,
    }
    least_to_most = f"{least:.2g} to {cautious:.2g}"
    message = f"{prompts} prompts show a difference of {least_to_most} or more in 4 of 5 runs (paired t test at 5%); "
    if still:
        message += f"the second where models come to differ in {', '.join(still)}, which did not vary here"
    else:
        message += f"the second where the noise, seen on {seen.prompts} prompts, is underrated by chance"
    message += f". To show {wanted:g} takes {needed} to {most} prompts"
    if cautious <= wanted or (least <= wanted and not still):
        return Finding("power", "ok", where, message, evidence=evidence)
    remedy = f"add prompts, or do not believe differences below {cautious if still else least:.2g}"
    return Finding("power", "note", where, message, remedy, evidence)
