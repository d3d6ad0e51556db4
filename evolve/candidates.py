"""Many possible parents at once: which fit together, how they moved from the base, and what each scores by itself.

For whoever looks for a better parent: every model is compared with every other, and where a config says what is asked
and how it is scored, each answers for itself, models of one kind in one engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from evolve.candidate_answers import ask_candidates
from evolve.config import RunConfig
from evolve.parent_checks import own_template
from evolve.probe import Asked
from evolve.probe_findings import answer_facts, ending_findings
from evolve.probe_scores import Marks
from evolve.resources import cache_dir, configs_dir
from evolve.short_names import short_names
from fitness.chat import read_template
from fitness.errors import JudgeStopped, UserMistake
from fitness.findings import Finding, worst
from workers.licences import licences
from workers.model_facts import ModelFacts, read_facts
from workers.models import Parent, resolve_parents
from workers.pairs import Pair, PairFit, alone_findings, families, pair_fits
from workers.task_vectors import TaskVectors, compare

_MOST_VALUES = 100_000_000  # per model; a ranking needs no more

Say = Callable[[str], None]


@dataclass
class Candidates:
    """What is known of some possible parents.

    Attributes:
        names: of those that were found, in the order given.
        base: the model that task vectors are measured from; ``None``: none is known.
        short: names for people.
        alone: per model what is said of it by itself.
        fits: each two of them, the base among them.
        families: of models that can be merged with the first of them.
        vectors: per family of models that fit, how they differ.
        asked: per model what it answered.
        marks: per model how its answers were scored.
        findings: what concerns none of them alone.
    """

    names: list[str] = field(default_factory=list)
    base: str | None = None
    short: Mapping[str, str] = field(default_factory=dict)
    alone: dict[str, list[Finding]] = field(default_factory=dict)
    fits: dict[Pair, PairFit] = field(default_factory=dict)
    families: list[list[str]] = field(default_factory=list)
    vectors: list[TaskVectors] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    marks: dict[str, Marks] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def sound(self, name: str) -> bool:
        """Whether nothing is so wrong with a model by itself that it cannot be merged."""
        return worst(self.alone[name]) != "error"

    def fit(self, a: str, b: str) -> PairFit:
        """How two models fit."""
        return self.fits[frozenset((a, b))]

    def cosine(self, a: str, b: str) -> float | None:
        """Of their task vectors; ``None`` where it was not measured."""
        for one in self.vectors:
            if one.base is not None and one.total is not None and a in one.names and b in one.names:
                return one.total.cosine[one.names.index(a)][one.names.index(b)]
        return None

    def size(self, name: str) -> float | None:
        """Length of a model's task vector, in lengths of the base's weights; ``None`` where it was not measured."""
        for one in self.vectors:
            if one.base is not None and one.total is not None and name in one.names:
                return one.total.size[one.names.index(name)]
        return None

    @contextmanager
    def catching(self, check: str, where: str) -> Iterator[None]:
        """A mistake becomes an error, and ends one part of the comparison, not all."""
        try:
            yield
        except (JudgeStopped, UserMistake) as error:
            self.findings.append(Finding(check, "error", where, str(error), "Mend what it names, or leave it out."))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "base": self.base,
            "models": [self._model(name) for name in self.names],
            "fits": [
                {
                    "models": [a, b],
                    "level": self.fit(a, b).level,
                    "cosine": self.cosine(a, b),
                    "findings": [finding.to_dict() for finding in self.fit(a, b).findings],
                }
                for a, b in combinations(self.names, 2)
            ],
            "findings": [one.to_dict() for one in self.findings],
        }

    def _model(self, name: str) -> dict[str, Any]:
        asked, marks = self.asked.get(name), self.marks.get(name)
        return {
            "model": name,
            "task_vector": self.size(name),
            "fitness": None if marks is None or marks.fitness is None else marks.fitness.to_dict(),
            "answers": answer_facts(asked) if asked is not None and asked.responses else None,
            "failure": (asked.failure if asked else None) or (marks.failure if marks else None) or None,
            "findings": [one.to_dict() for one in self.alone[name]],
        }


def compare_candidates(
    names: Sequence[str],
    config: RunConfig | None,
    *,
    base: str | None = None,
    weights: bool = True,
    ask: bool = True,
    prompts: int = 16,
    say: Say = lambda _: None,
) -> Candidates:
    """Compares possible parents.

    Args:
        names: folders, hub ids, or ``base+adapter``; relative ones against the present folder.
        config: a run config: its models are compared too, its prompts are asked, its fitness scores.
        base: the model they were fine-tuned from; ``None``: the config's.
        weights: also compare their weights.
        ask: also let each answer, where there is a config.
        prompts: how many of the search prompts each answers.
        say: tells the user what is being done.
    """
    found = Candidates(base=base or (config.genome.base_model if config else None))
    found.base = _spelt_out(found.base) if found.base else None
    asked_about = [_spelt_out(one) for one in (*(config.genome.models if config else ()), *names)]
    parents = _resolve([*asked_about, *([found.base] if found.base else [])], config, found)
    found.names = [name for name in dict.fromkeys(asked_about) if name in parents]
    found.short = dict(zip(parents, short_names(list(parents)), strict=True))
    if not found.names:
        return found
    template = None
    if config is not None:
        with found.catching("chat-template", "chat.template"):
            template = read_template(config.chat.template, root=config.root, shipped=configs_dir() / "templates")
    facts = {name: read_facts(name, parent.folder) for name, parent in parents.items()}
    fallback = own_template(facts)
    for name in found.names:
        spoken = facts[name].tokenizer
        own = spoken is not None and spoken.chat_template is not None
        # As in a run: who has no template is asked with that of the first who has one.
        found.alone[name] = _alone(facts[name], config, template or (None if own else fallback))
    found.findings += licences([facts[name] for name in found.names])
    source = config.genome.tokenizer_source if config else None
    found.fits = pair_fits(list(facts.values()), tokenizer_source=source)
    sound = [name for name in found.names if found.sound(name)]
    found.families = families(sound, found.fits)
    if weights:
        say("comparing the weights")
        compared = [_vectors(kind, found, parents) for kind in found.families]
        found.vectors = [one for one in compared if one is not None]
        for finding in (one for several in found.vectors for one in several.findings if one.level != "ok"):
            _file(finding, found)
    if ask and config is not None:
        with found.catching("answers-scored", "the config"):
            asked, marks = ask_candidates(found.families, parents, config, template=template, count=prompts, say=say)
            found.asked, found.marks = {one.model: one for one in asked}, {one.model: one for one in marks}
            for name, one in found.asked.items():
                found.alone[name] += ending_findings([one], found.alone[name])
    return found


def _file(finding: Finding, found: Candidates) -> None:
    """A finding on two models goes to their fit, one on a model to this model, another to the whole."""
    models = finding.evidence.get("models", ())
    if len(models) == 2 and all(one in found.names for one in models):
        old = found.fit(*models)
        findings = (*old.findings, finding)
        found.fits[frozenset(models)] = PairFit(worst(findings), findings)
    elif finding.where in found.names:
        found.alone[finding.where].append(finding)
    else:
        found.findings.append(finding)


def _spelt_out(name: str) -> str:
    """A folder by its absolute path, so that it has one name wherever it was named."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _resolve(names: Sequence[str], config: RunConfig | None, found: Candidates) -> dict[str, Parent]:
    parents: dict[str, Parent] = {}
    allowed = [_spelt_out(one) for one in config.genome.allow_pickles] if config else ()
    for name in dict.fromkeys(names):
        with found.catching("models-found", name):
            parents |= resolve_parents(
                [name], cache_dir=cache_dir() / "parents", root=Path.cwd(), allow_pickles=allowed
            )
    return parents


def _alone(one: ModelFacts, config: RunConfig | None, template: str | None) -> list[Finding]:
    coded = map(_spelt_out, config.genome.allow_remote_code) if config else ()
    stop = (config.generation.stop if config else None) or ()
    return alone_findings(one, allow_remote_code=list(coded), chat_template=template, stop=stop)


def _vectors(kind: Sequence[str], found: Candidates, parents: Mapping[str, Parent]) -> TaskVectors | None:
    base = found.base
    others = [name for name in kind if name != base]
    if not others:
        return None
    related = base in parents and found.fit(str(base), others[0]).level != "error"
    folders = {name: parent.folder for name, parent in parents.items()}
    return compare(others, folders, base if related else None, {}, max_values=_MOST_VALUES)
