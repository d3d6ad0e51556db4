"""What a check collects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evolve.budget import Plan
from evolve.estimate import Estimate
from evolve.probe import Probe
from fitness.errors import UserMistake
from fitness.findings import Finding
from workers.task_vectors import TaskVectors


@dataclass
class Report:
    """What a check has found.

    Attributes:
        findings: in the order of the checks.
        vectors: how the parents moved from their base, where their weights were compared.
        probe: what the parents answered, where they were asked.
        plan: what would be evaluated, where the run can start.
        estimate: what the run will need, where the probe measured it.
        names: short names of models that are named by their folders.
    """

    findings: list[Finding] = field(default_factory=list)
    vectors: TaskVectors | None = None
    probe: Probe | None = None
    plan: Plan | None = None
    estimate: Estimate | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "findings": [one.to_dict() for one in self.findings],
            "task_vectors": None if self.vectors is None else self.vectors.to_dict(),
            "plan": None if self.plan is None else self.plan.to_dict(),
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
        }

    def of(self, *levels: str) -> list[Finding]:
        """The findings of some levels."""
        return [one for one in self.findings if one.level in levels]

    @contextmanager
    def catching(self, check: str, where: str) -> Iterator[None]:
        """A mistake of the user's becomes an error, and ends one part of the checks, not all."""
        try:
            yield
        except UserMistake as error:
            if all(one.message != str(error) for one in self.findings):  # else an earlier check met the same
                remedy = "Mend what it names, then check again."
                self.findings.append(Finding(check, "error", where, str(error), remedy))
