"""Many models compared with each other: which fit which, and the families they fall into."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from fitness.findings import Finding, Level, worst
from workers.ending import ending
from workers.fit import parents_fit
from workers.model_facts import ModelFacts

# What is said of two models together; everything else concerns one folder.
_OF_PAIRS = (
    "same-architecture",
    "same-shapes",
    "tied-embeddings",
    "same-positions",
    "same-details",
    "same-vocabulary",
    "added-tokens",
    "special-tokens",
    "chat-template",
)

Pair = frozenset[str]
"""Names of two models."""


@dataclass(frozen=True)
class PairFit:
    """Whether two models can be merged.

    Attributes:
        level: the worst that was found.
        findings: above ``ok``.
    """

    level: Level
    findings: tuple[Finding, ...]

    @property
    def checks(self) -> tuple[str, ...]:
        """Which checks found the worst."""
        return tuple(dict.fromkeys(one.check for one in self.findings if one.level == self.level))


def pair_fits(facts: Sequence[ModelFacts], *, tokenizer_source: str | None = None) -> dict[Pair, PairFit]:
    """Each two models compared.

    Args:
        facts: of the models.
        tokenizer_source: of the run; where given, mergekit aligns vocabularies.
    """
    fits: dict[Pair, PairFit] = {}
    for a, b in combinations(facts, 2):
        found = parents_fit([a, b], None, tokenizer_source=tokenizer_source)
        both = tuple(one for one in found if one.check in _OF_PAIRS and one.level != "ok")
        if not (a.tensors and b.tensors):  # nothing to compare: what is wrong is said of the folder
            both += tuple(one for one in found if one.level == "error" and one not in both)
        fits[frozenset((a.name, b.name))] = PairFit(worst(both), both)
    return fits


def families(names: Sequence[str], fits: Mapping[Pair, PairFit]) -> list[list[str]]:
    """Models that can be merged with the first of their family, which one engine can hold in turn.

    Args:
        names: of the models.
        fits: from :func:`pair_fits`, over these names at least.
    """
    found: list[list[str]] = []
    for name in names:
        home = next((one for one in found if fits[frozenset((one[0], name))].level != "error"), None)
        if home is None:
            found.append([name])
        else:
            home.append(name)
    return found


def alone_findings(
    one: ModelFacts,
    *,
    allow_remote_code: Collection[str] = (),
    chat_template: str | None = None,
    stop: Sequence[str] = (),
) -> list[Finding]:
    """What can be said of a model by itself: its folder and its end of text.

    Args:
        one: the model.
        allow_remote_code: names of models that may bring code of their own. It is never run here.
        chat_template: Jinja text that conversations are written with; ``None`` takes the model's own.
        stop: texts before which an answer ends.
    """
    own = parents_fit(
        [one], None, tokenizer_source=None, allow_remote_code=allow_remote_code, chat_template=chat_template
    )
    template = chat_template or (one.tokenizer.chat_template if one.tokenizer else None)
    return [*own, *ending(one, chat_template=template, stop=stop)]
