"""What a check has found: a fact, how bad it is, and what to do about it. Plain data, for tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        check: which check, such as ``pad-is-eos``.
        level: ``ok``; ``note``: worth knowing; ``warning``: it works and probably disappoints; ``error``: the run
            cannot work, or would certainly be wasted.
        where: dotted path in the config, file, or model.
        message: what was seen; for ``ok`` what was compared.
        remedy: what to do; empty for ``ok``.
        evidence: the data behind it, as JSON has it.
    """

    check: str
    level: Level
    where: str
    message: str
    remedy: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a complaint that leaves its reader alone."""
        if self.level in ("warning", "error") and not self.remedy:
            raise ValueError(f"finding {self.check} at {self.where}: a {self.level} needs a remedy")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among them, ``ok`` where there are none."""
    return max((one.level for one in findings), key=LEVELS.index, default="ok")
