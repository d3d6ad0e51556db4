"""Everything that can be wrong with a run, found before it costs a night. Findings, not exceptions.

What needs no weights comes first, then what reads them, then what needs an engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evolve.baselines import parents_of
from evolve.config import RunConfig
from evolve.environment import check_space
from evolve.estimate import Estimate, estimate
from evolve.judging import cautions_of, judges_of, judging
from evolve.prepare import Prepared, disk_bytes, prepare
from evolve.probe import RUN, Probe, probe
from evolve.probe_findings import probe_findings
from evolve.resources import configs_dir
from fitness.chat import read_template
from fitness.errors import JudgeStopped, UserMistake
from fitness.findings import Finding
from fitness.metrics import build_term
from fitness.prompt_checks import length_finding, prompt_findings, truncation_findings
from fitness.prompts import load_prompts
from workers.ending import ending
from workers.errors import WorkersLost
from workers.fit import parents_fit
from workers.licences import licences
from workers.model_facts import ModelFacts, read_facts
from workers.models import Parent, read_architecture
from workers.skeleton import own_template
from workers.task_vectors import compare, layer_groups

# Values per pair of models that are compared; more say the same.
_MOST_VALUES = 500_000_000


@dataclass
class Report:
    """What a check has found.

    Attributes:
        findings: in the order of the checks.
        probe: what the parents answered, where they were asked.
        estimate: what the run will need, where the probe measured it.
    """

    findings: list[Finding] = field(default_factory=list)
    probe: Probe | None = None
    estimate: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "findings": [one.to_dict() for one in self.findings],
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
        }


def check(
    config: RunConfig,
    *,
    weights: bool = True,
    ask: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Checks a config.

    Args:
        config: the run config.
        weights: also compare the parents' weights.
        ask: also ask the judge a question, and the parents a few, which starts an engine.
        say: tells the user what is being done.
    """
    report = Report()
    _models(config, report, weights=weights, say=say)
    _prompts(config, report)
    with tempfile.TemporaryDirectory() as work_dir:
        prepared = _prepared(config, Path(work_dir), report)
        if prepared is None:
            return report
        if ask and not any(one.level == "error" for one in report.findings):
            _judges(prepared, report, say)
            _probe(prepared, report, say)
    return report


def _models(config: RunConfig, report: Report, *, weights: bool, say: Callable[[str], None]) -> None:
    with _as_finding(report, "models-found", "genome.models"):
        parents = parents_of(config)
        report.findings.append(Finding("models-found", "ok", "genome.models", f"{len(parents)} models are there."))
        template = read_template(config.chat.template, root=config.root, shipped=configs_dir() / "templates")
        facts = {name: read_facts(name, parent.folder) for name, parent in parents.items()}
        base = facts.get(config.genome.base_model or "")
        children = [facts[name] for name in config.genome.models]
        source = config.genome.tokenizer_source
        report.findings += parents_fit(children, base, tokenizer_source=source, chat_template=template)
        report.findings += _endings(children, template or own_template(parents.values()), config)
        report.findings += licences(list(facts.values()))
        if weights and not any(one.level == "error" for one in report.findings):
            say("comparing the parents' weights")
            report.findings += _vectors(config, parents)


def _endings(children: Sequence[ModelFacts], template: str | None, config: RunConfig) -> list[Finding]:
    stop = config.generation.stop or ()
    return [finding for one in children for finding in ending(one, chat_template=template, stop=stop)]


def _vectors(config: RunConfig, parents: dict[str, Parent]) -> Sequence[Finding]:
    names = list(config.genome.models)
    groups = layer_groups(read_architecture(parents[names[0]]))
    folders = {name: parent.folder for name, parent in parents.items()}
    return compare(names, folders, config.genome.base_model, groups, max_values=_MOST_VALUES).findings


def _prompts(config: RunConfig, report: Report) -> None:
    with _as_finding(report, "prompts-read", "prompts.files"):
        prompts = load_prompts(config.prompts, root=config.root)
        terms = [build_term(one, f"fitness.terms[{i}]") for i, one in enumerate(config.fitness.terms)]
        report.findings += prompt_findings(prompts, terms=terms)


def _prepared(config: RunConfig, work_dir: Path, report: Report) -> Prepared | None:
    with _as_finding(report, "run-can-start", "the config"):
        prepared = prepare(config, work_dir)
        report.findings.append(
            Finding("run-can-start", "ok", "the config", "Everything that a run checks before it starts holds.")
        )
        notes = (*prepared.genome.notes, *cautions_of(config))
        report.findings += [Finding("plan", "note", "the config", note) for note in notes]
        tokens = {name: len(ids) for split in prepared.tokens.values() for name, ids in split}
        report.findings.append(
            length_finding(
                tokens,
                max_new_tokens=prepared.generation.max_new_tokens,
                context_tokens=prepared.spec.max_model_len,
            )
        )
        shortage = check_space(Path.cwd(), disk_bytes(prepared, prepared.plan.total_evaluations))
        if shortage:
            remedy = "Free some space, or choose another --runs-dir."
            report.findings.append(Finding("disk", "warning", str(Path.cwd()), shortage, remedy))
        else:
            report.findings.append(Finding("disk", "ok", str(Path.cwd()), "There is room for answers and history."))
        return prepared
    return None


def _judges(prepared: Prepared, report: Report, say: Callable[[str], None]) -> None:
    if not judges_of(prepared.config):
        return
    try:
        with judging(prepared.config, prepared.scoring, prepared.rivals, spending=None, say=say) as stage:
            for setting, name in stage.answers_as.items():
                report.findings.append(Finding("judge-answers", "ok", setting, f"It answers as {name}, in its form."))
    except (JudgeStopped, UserMistake) as error:
        remedy = "Mend what it names; evolve judge ask tries it alone."
        report.findings.append(Finding("judge-answers", "error", "fitness.judge", str(error), remedy))


def _probe(prepared: Prepared, report: Report, say: Callable[[str], None]) -> None:
    try:
        report.probe = probe(prepared, say=say)
    except (UserMistake, WorkersLost) as error:
        remedy = "Mend what it names; the run would end the same way."
        report.findings.append(Finding("parents-answer", "error", "workers", str(error), remedy))
        return
    answers = {one.model: one.responses for one in report.probe.asked if one.settings == RUN and one.responses}
    report.findings += probe_findings(report.probe, report.findings)
    report.findings += truncation_findings(answers, max_new_tokens=prepared.generation.max_new_tokens)
    needed = disk_bytes(prepared, prepared.plan.total_evaluations)
    report.estimate = estimate(prepared, report.probe, disk_bytes=needed)


@contextmanager
def _as_finding(report: Report, name: str, where: str) -> Iterator[None]:
    """A mistake of the user's ends one part of the checks, not all."""
    try:
        yield
    except UserMistake as error:
        report.findings.append(Finding(name, "error", where, str(error), "Mend what it names, then check again."))
