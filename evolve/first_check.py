"""What stands between ``evolve run`` and its first engine: errors end it, warnings too unless the user insists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from evolve.check import check
from evolve.config import RunConfig
from evolve.errors import ConfigError
from evolve.short_names import shortened
from fitness.findings import Finding


def checked(
    config: RunConfig, *, source: Path, runs_dir: Path, force: bool, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Checks a config without asking parents or judge anything.

    Args:
        config: the run config.
        source: its file, for the message.
        runs_dir: folder of the runs.
        force: go on in spite of warnings.
        say: tells the user what is being done, and what was found and is gone past.

    Returns:
        The warnings, one line each, for the record of the run.

    Raises:
        ConfigError: with every error and warning, and what to do about each.
    """
    report = check(config, ask=False, runs_dir=runs_dir, say=say)
    errors, warnings = report.of("error"), report.of("warning")
    if errors or (warnings and not force):
        counts = [f"{len(some)} {name}(s)" for name, some in (("error", errors), ("warning", warnings)) if some]
        lines = [f"{source}: {' and '.join(counts)}, nothing was started."]
        for one in (*errors, *warnings):
            lines.append(f"  {one.level} {one.check}: {_line(one, report.names)} {_remedy(one)}")
        insist = "" if errors else " To start in spite of the warnings, which the run will record: --force."
        raise ConfigError("\n".join([*lines, f"See everything: evolve check {source}.{insist}"]))
    for one in warnings:
        say(f"warning: {one.check}: {_line(one, report.names)}")
    return tuple(f"{one.check}: {_line(one, report.names)}" for one in warnings)


def _line(finding: Finding, names: Mapping[str, str]) -> str:
    message = finding.message if finding.message.endswith((".", "?", "!")) else f"{finding.message}."
    # What prepare() refuses says where by itself.
    return shortened(message if finding.where in message else f"{finding.where}: {message}", names)


def _remedy(finding: Finding) -> str:
    """A sentence, behind another one."""
    text = finding.remedy[:1].upper() + finding.remedy[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."
