"""What can be told of a run's models and prompts before anything is put together: from files and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from evolve.baselines import find_parents, models_of
from evolve.config import RunConfig
from evolve.report import Report
from evolve.resources import configs_dir
from evolve.short_names import short_names
from fitness.chat import read_template
from fitness.errors import UserMistake
from fitness.findings import Finding
from fitness.generation import resolve_generation
from fitness.metrics import build_term
from fitness.prompt_checks import length_finding, prompt_findings, written_finding
from fitness.prompts import Prompt, load_prompts
from workers.ending import end_tokens, ending
from workers.fit import parents_fit
from workers.licences import licences
from workers.model_facts import ModelFacts, read_facts
from workers.models import Parent, read_architecture
from workers.task_vectors import compare, layer_groups

# Values per pair of models that are compared; more say the same.
_MOST_VALUES = 500_000_000

Facts = Mapping[str, ModelFacts]


def find_models(config: RunConfig, report: Report) -> dict[str, Parent]:
    """The folders of the models, the base last; what is missing is a finding."""
    parents: dict[str, Parent] = {}
    for name in models_of(config):
        with report.catching("models-found", name):
            parents |= find_parents(config, [name])
    if not report.of("error"):
        report.findings.append(Finding("models-found", "ok", "genome.models", f"{len(parents)} models are there."))
    short = zip(parents, short_names(list(parents)), strict=True)
    report.names = {name: last for name, last in short if Path(name).is_absolute()}
    return parents


def check_parents(config: RunConfig, report: Report, parents: Mapping[str, Parent]) -> Facts:
    """Whether the models fit together, can end an answer and may be used.

    Args:
        config: the run config.
        report: gets the findings.
        parents: from :func:`find_models`.

    Returns:
        What could be read of the models by name, the base last.
    """
    facts = {name: read_facts(name, parent.folder) for name, parent in parents.items()}
    children = [facts[name] for name in config.genome.models if name in facts]
    if not children:
        return facts
    chosen = _chosen_template(config, report)
    report.findings += parents_fit(
        children,
        facts.get(config.genome.base_model or ""),
        tokenizer_source=config.genome.tokenizer_source,
        allow_remote_code=config.genome.allow_remote_code,
        chat_template=chosen,
    )
    template, stop = chosen or own_template(facts), config.generation.stop or ()
    others = frozenset(token for one in facts.values() for token in end_tokens(one))
    report.findings += [
        found for one in children for found in ending(one, chat_template=template, stop=stop, others=others)
    ]
    report.findings += licences(list(facts.values()))
    return facts


def check_weights(config: RunConfig, report: Report, parents: Mapping[str, Parent]) -> None:
    """Whether the parents moved from their base as fine-tunes do."""
    names = list(config.genome.models)
    groups = layer_groups(read_architecture(parents[names[0]]))
    folders = {name: parent.folder for name, parent in parents.items()}
    report.vectors = compare(names, folders, config.genome.base_model, groups, max_values=_MOST_VALUES)
    report.findings += report.vectors.findings


def check_prompts(config: RunConfig, report: Report, facts: Facts) -> None:
    """Whether the prompts are worth asking, and reach the models whole."""
    with report.catching("prompts-read", "prompts.files"):
        prompts = load_prompts(config.prompts, root=config.root)
        terms = [build_term(one, f"fitness.terms[{i}]") for i, one in enumerate(config.fitness.terms)]
        report.findings += prompt_findings(prompts, terms=terms)
        report.findings += _written(config, prompts, facts, _chosen_template(config, report) or own_template(facts))


def own_template(facts: Facts) -> str | None:
    """The first model's that carries one, as ``workers.skeleton`` has it; of what could be read."""
    own = [one.tokenizer.chat_template for one in facts.values() if one.tokenizer]
    return next(filter(None, own), None)


def _chosen_template(config: RunConfig, report: Report) -> str | None:
    with report.catching("chat-template", "chat.template"):
        return read_template(config.chat.template, root=config.root, shipped=configs_dir() / "templates")
    return None


def _written(config: RunConfig, prompts: Sequence[Prompt], facts: Facts, template: str | None) -> list[Finding]:
    """The prompts as the models get them; what they cannot get at all is refused when a run is prepared."""
    donor = facts.get(config.genome.base_model or config.genome.models[0])
    if donor is None or donor.tokenizer is None or template is None:
        return []
    limits = [config.workers.max_model_len, donor.settings.get("max_position_embeddings")]
    context = min((limit for limit in limits if limit is not None), default=None)
    try:
        generation = resolve_generation(config.generation)
        texts = {
            one.id: donor.tokenizer.render([asdict(turn) for turn in one.messages], template=template, prompt=True)
            for one in prompts
        }
    except UserMistake:
        return []
    found = [written_finding(prompts, texts)]
    if context is not None:
        ids = donor.tokenizer.tokenizer(list(texts.values()), add_special_tokens=False)["input_ids"]
        tokens = {name: len(one) for name, one in zip(texts, ids, strict=True)}
        found.append(length_finding(tokens, max_new_tokens=generation.max_new_tokens, context_tokens=context))
    return found
