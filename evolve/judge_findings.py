"""Whether the price of judging is known, and whether the caps let the run end."""

from __future__ import annotations

from evolve.estimate import Estimate
from evolve.judge_costs import estimates
from evolve.judging import judges_of
from evolve.prepare import Prepared
from fitness.findings import Finding
from fitness.judge_config import JudgeConfig


def judge_findings(prepared: Prepared, measured: Estimate | None = None) -> list[Finding]:
    """A finding per judge on a server; asks nothing.

    Args:
        prepared: the checked config.
        measured: from a probe; ``None``: the most that can be needed is told.
    """
    findings = []
    configs = judges_of(prepared.config)
    for one in estimates(prepared) if measured is None else measured.judges:
        config, check = configs[one.setting], "judge-cost"
        if not isinstance(config, JudgeConfig):
            continue
        evidence = one.to_dict()
        if one.caution is not None:
            text = f"{one.caution} The run would stop there, resumable."
            remedy = "Raise the cap, or lower budget.max_fevals, the number of prompts, or samples."
            findings.append(Finding(check, "warning", one.setting, text, remedy, evidence))
        elif one.usd is None:
            text = f"{one.calls} calls at most, and no price is known: neither a cost nor a cap in dollars can be told."
            findings.append(Finding(check, "note", one.setting, text, "Set price_per_million.", evidence))
        else:
            findings.append(Finding(check, "ok", one.setting, f"{one}.", evidence=evidence))
    return findings
