"""Everything that can be wrong with a run, found before it costs a night. Findings, not exceptions.

What needs no weights comes first, then what reads them, then what needs an engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evolve.asking import ask_all
from evolve.config import RunConfig
from evolve.judge_findings import judge_findings
from evolve.judging import cautions_of
from evolve.machine_checks import (
    disk_finding,
    machines_of,
    memory_findings,
    seen_by_all,
    storage_finding,
    worker_findings,
)
from evolve.parent_checks import check_parents, check_prompts, check_weights, find_models
from evolve.prepare import Prepared, prepare
from evolve.report import Report
from fitness.findings import Finding
from fitness.power import WANTED
from workers.machine import Node, Resources

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
    with tempfile.TemporaryDirectory(dir=seen_by_all(config)) as work_dir:
        prepared = _prepared(config, Path(work_dir), Path(runs_dir), report)
        machines, each = ([], None) if prepared is None else _machines(prepared, report)
        if weights and not report.of("error"):
            say("comparing the parents' weights")
            check_weights(config, report, parents)
        if prepared is not None and each is not None:
            if ask and not report.of("error"):
                ask_all(prepared, report, prompts=asking.prompts, wanted=asking.difference, cpus=each.cpus, say=say)
            peak = None if report.probe is None else report.probe.peak_bytes
            report.findings += memory_findings(prepared, machines, each, peak_bytes=peak)
            report.findings += judge_findings(prepared, report.estimate)
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
        report.plan = prepared.plan
        return prepared
    return None


def _machines(prepared: Prepared, report: Report) -> tuple[list[Node], Resources | None]:
    with report.catching("machine", "workers.ray_address"):
        machines = machines_of(prepared.config)
        finding, each = worker_findings(prepared, machines)
        report.findings.append(finding)
        return machines, each
    return [], None
