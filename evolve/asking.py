"""The part of a check that costs something: judge and parents are asked, and the judge about the parents' answers."""

from __future__ import annotations

from collections.abc import Callable

from evolve.config import RunConfig
from evolve.estimate import estimate
from evolve.judging import Judging, judges_of, judging
from evolve.prepare import Prepared, disk_bytes
from evolve.probe import PRESETS_ASKED, Probe, probe
from evolve.probe_findings import probe_findings
from evolve.probe_scores import Scored, score_answers, score_findings
from evolve.report import Report
from fitness.errors import JudgeStopped, UserMistake
from fitness.findings import Finding
from workers.errors import EngineSetupError, WorkersLost

Say = Callable[[str], None]


def ask_all(prepared: Prepared, report: Report, *, prompts: int, wanted: float, cpus: float, say: Say) -> None:
    """Asks judges and parents, and says what follows for the run.

    Args:
        prepared: the checked config.
        report: gets findings, probe and estimate.
        prompts: how many of the search prompts each parent answers under each setting.
        wanted: the least difference of fitness that the user wants to see.
        cpus: that each worker of the run will get.
        say: tells the user what is being done.
    """
    config = prepared.config
    try:
        with judging(config, prepared.scoring, prepared.rivals, spending=None, say=say) as stage:
            report.findings += [_answering(setting, name, stage) for setting, name in stage.answers_as.items()]
            found = report.probe = _probed(prepared, report, prompts, cpus, say)
            if found is None:
                return
            rubric = prepared.scoring.rubric
            language = None if rubric is None else rubric.answer_language
            report.findings += probe_findings(
                found, report.findings, prompts=prepared.prompts["search"], language=language
            )
            asked = [*found.asked, found.merged]
            if judges_of(config):
                say(f"asking the judge about {sum(len(one.responses) for one in asked if one.of_run)} answers")
            scored = score_answers(asked, stage, min_scored_share=config.fitness.min_scored_share)
    except (JudgeStopped, UserMistake) as error:
        remedy = "Mend what it names; evolve judge ask tries it alone."
        report.findings.append(Finding("judge-answers", "error", "fitness.judge", str(error), remedy))
        return
    decide = len(prepared.prompts["validation"])
    report.findings += score_findings(
        scored, prepared.scoring.terms, validation_prompts=decide, wanted=wanted, caveat=_caveat(config)
    )
    report.findings += _spent(scored)
    needed = disk_bytes(prepared, prepared.plan.total_evaluations)
    report.estimate = estimate(prepared, found, scored, disk_bytes=needed)


def _probed(prepared: Prepared, report: Report, prompts: int, cpus: float, say: Say) -> Probe | None:
    """A probe, without the presets where the engine has no room for their longer answers."""
    try:
        try:
            return probe(prepared, prompts=prompts, presets=PRESETS_ASKED, cpus=cpus, say=say)
        except EngineSetupError as error:
            text = f"The engine does not start with room for the presets' longer answers ({error}): they were left out."
            report.findings.append(Finding("parents-answer", "note", "generation.preset", text))
            return probe(prepared, prompts=prompts, presets=(), cpus=cpus, say=say)
    except (UserMistake, WorkersLost) as error:
        remedy = "Mend what it names; the run would end the same way."
        report.findings.append(Finding("parents-answer", "error", "workers", str(error), remedy))
        return None


def _answering(setting: str, name: str, stage: Judging) -> Finding:
    form = stage.judges[setting].form
    text = f"It answers as {name}"
    if form is None or form == "json_schema":
        kept = "a strict JSON schema" if form else "its grades' probabilities"
        return Finding("judge-answers", "ok", setting, f"{text}, held to {kept}.")
    loose = {"json_object": "JSON mode", "text": "our parser alone"}[form]
    text += f", held by {loose}: the endpoint takes no JSON schema, so some replies will have to be asked for again."
    return Finding("judge-answers", "note", setting, text)


def _caveat(config: RunConfig) -> str:
    """In what the finals differ from the probe, whose noise is taken for theirs."""
    others = ["another judge decides"] if config.fitness.final_judge is not None else []
    others += [f"each prompt is answered {config.finalist_repeats} times"] if config.finalist_repeats > 1 else []
    return f"; in the finals {' and '.join(others)}, which the probe has not seen" if others else ""


def _spent(scored: Scored) -> list[Finding]:
    """What the check itself has cost; it is on no run's account."""
    return [
        Finding("check-cost", "ok", setting, f"This check made {one.calls} calls, ${one.usd:.4f}.", "", one.to_dict())
        for setting, one in scored.spent.items()
        if one.calls
    ]
