"""The facts of a run beside its history, in ``run.json``; and the words for how it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from evolve.budget import Plan
from evolve.outcome import write_durably

Status = Literal["running", "finished", "interrupted", "failed"]
STATE_FILE = "run.json"
SPENDING_FILE = "spending.db"  # what the judges cost


@dataclass(frozen=True)
class State:
    """What stands in ``run.json``.

    Attributes:
        status: ``running`` also of a run whose driver died; see :attr:`evolve.run.Run.status`.
        stop_reason: why the search ended, or what stopped the run.
        seconds: wall-clock seconds spent searching, over all sittings.
        plan: frozen when the run was created, or when it was last extended.
        sittings: when each sitting began, in Unix seconds.
        changes: settings changed since it was created: ``{"at": ISO time, "settings": {path: [old, new]}}``.
        versions: of the libraries, and the processor, that the run was created with.
        warnings: what a reader of the results should know.
        fingerprints: of what must not change in mid-run, when the run was created: ``questions`` (prompts, chat
            template, tokenizer, generation settings, rubric) and ``models`` (the parents' weights).
        judges: by the dotted path of their settings, the names under which the judges answered when they were first
            asked.
        score_bounds: least and greatest score that an answer can have.
        created: UTC, ISO 8601.
    """

    status: Status
    stop_reason: str | None
    seconds: float
    plan: Plan
    sittings: tuple[float, ...]
    changes: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    warnings: tuple[str, ...]
    fingerprints: dict[str, str]
    judges: dict[str, str]
    score_bounds: tuple[float, float]
    created: str

    def write(self, folder: Path) -> None:
        """Durably, whole or not at all."""
        data = {field.name: getattr(self, field.name) for field in fields(self)} | {"plan": self.plan.to_dict()}
        write_durably(folder / STATE_FILE, json.dumps(data, indent=2, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> State:
        """What :meth:`write` wrote.

        Raises:
            OSError, ValueError, TypeError, KeyError: it cannot be read, or is not what this version writes.
        """
        data = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        lists = {name: tuple(data[name]) for name in ("sittings", "changes", "warnings", "score_bounds")}
        return cls(**{**data, **lists, "plan": Plan(**data["plan"])})
