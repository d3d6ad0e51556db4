"""Everything that can be wrong with a run, found before it costs a night. Findings, not exceptions.

What needs no weights comes first, then what reads them, then what needs an engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evolve.config import RunConfig
from evolve.estimate import estimate
from evolve.judge_findings import judge_findings
from evolve.judging import Judging, cautions_of, judges_of, judging
from evolve.machine_checks import disk_finding, machines_of, memory_findings, storage_finding, worker_findings
from evolve.parent_checks import check_parents, check_prompts, check_weights, find_models
from evolve.prepare import Prepared, disk_bytes, prepare
from evolve.probe import probe
from evolve.probe_findings import probe_findings
from evolve.probe_scores import score_answers, score_findings
from evolve.report import Report
from fitness.errors import JudgeStopped, UserMistake
from fitness.findings import Finding
from fitness.power import WANTED
from workers.errors import WorkersLost

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asking:
    """How the parents and the judge are asked.

    Attributes:
        prompts: how many of the search prompts each parent answers under each setting.
        difference: the least difference of fitness that the user wants the run to show.
    """

    prompts: int = 16
    difference: float = WANTED


USUALLY = Asking()


def check(
    config: RunConfig,
    *,
    weights: bool = True,
    ask: bool = True,
    asking: Asking = USUALLY,
    runs_dir: Path | str = "runs",
    say: Say = lambda _: None,
) -> Report:
    """Checks a config.

    Args:
        config: the run config.
        weights: also compare the parents' weights.
        ask: also ask the judge a question, and the parents a few, which starts an engine.
        asking: how.
        runs_dir: folder of the runs.
        say: tells the user what is being done.
    """
    report = Report()
    parents = find_models(config, report)
    check_prompts(config, report, check_parents(config, report, parents))
    report.findings.append(storage_finding(config, Path(runs_dir)))
    with tempfile.TemporaryDirectory() as work_dir:
        prepared = _prepared(config, Path(work_dir), Path(runs_dir), report)
        if weights and not report.of("error"):
            say("comparing the parents' weights")
            check_weights(config, report, parents)
        if prepared is not None and ask and not report.of("error"):
            _ask(prepared, asking, report, say)
        if prepared is not None:
            report.plan = prepared.plan
            _machine(prepared, report)
    return report


def _prepared(config: RunConfig, work_dir: Path, runs_dir: Path, report: Report) -> Prepared | None:
    with report.catching("run-can-start", "the config"):
        prepared = prepare(config, work_dir)
        report.findings.append(
            Finding("run-can-start", "ok", "the config", "Everything that a run checks before it starts holds.")
        )
        notes = (*prepared.genome.notes, *cautions_of(config))
        report.findings += [Finding("plan", "note", "the config", note) for note in notes]
        report.findings.append(disk_finding(prepared, runs_dir))
        report.findings += judge_findings(prepared)
        return prepared
    return None


def _ask(prepared: Prepared, asking: Asking, report: Report, say: Say) -> None:
    try:
        with judging(prepared.config, prepared.scoring, prepared.rivals, spending=None, say=say) as stage:
            for setting, name in stage.answers_as.items():
                report.findings.append(_answering(setting, name, stage))
            _probe(prepared, stage, asking, report, say)
    except (JudgeStopped, UserMistake) as error:
        remedy = "Mend what it names; evolve judge ask tries it alone."
        report.findings.append(Finding("judge-answers", "error", "fitness.judge", str(error), remedy))


def _answering(setting: str, name: str, stage: Judging) -> Finding:
    form = stage.judges[setting].form
    text = f"It answers as {name}"
    if form is None or form == "json_schema":
        kept = "a strict JSON schema" if form else "its grades' probabilities"
        return Finding("judge-answers", "ok", setting, f"{text}, held to {kept}.")
    loose = {"json_object": "JSON mode", "text": "our parser alone"}[form]
    text += f", held by {loose}: the endpoint takes no JSON schema, so some replies will have to be asked for again."
    return Finding("judge-answers", "note", setting, text)


def _probe(prepared: Prepared, stage: Judging, asking: Asking, report: Report, say: Say) -> None:
    try:
        found = report.probe = probe(prepared, prompts=asking.prompts, say=say)
    except (UserMistake, WorkersLost) as error:
        remedy = "Mend what it names; the run would end the same way."
        report.findings.append(Finding("parents-answer", "error", "workers", str(error), remedy))
        return
    report.findings += probe_findings(
        found,
        report.findings,
        prompts=prepared.prompts["search"],
        language=None if prepared.scoring.rubric is None else prepared.scoring.rubric.answer_language,
    )
    if judges_of(prepared.config):
        say("asking the judge about these answers")
    least = prepared.config.fitness.min_scored_share
    scored = score_answers([*found.asked, found.merged], stage, min_scored_share=least)
    decide = len(prepared.prompts["validation"])
    report.findings += score_findings(scored, validation_prompts=decide, wanted=asking.difference)
    needed = disk_bytes(prepared, prepared.plan.total_evaluations)
    report.estimate = estimate(prepared, found, scored, disk_bytes=needed)


def _machine(prepared: Prepared, report: Report) -> None:
    """Comes last, since the probe has measured what a worker takes."""
    with report.catching("machine", "workers.ray_address"):
        machines = machines_of(prepared.config)
        finding, each = worker_findings(prepared, machines)
        report.findings.append(finding)
        if each is not None:
            peak = None if report.probe is None else report.probe.peak_bytes
            report.findings += memory_findings(prepared, machines, each, peak_bytes=peak)
