"""What a run has left on the disk, read from outside, and how two runs differ."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

FACTS = (
    *("number", "key", "kind", "label", "split", "generation", "index"),
    *("state", "fitness", "stderr", "parts", "genotype", "recipe_hash", "failure"),
)


def differences(reference: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    """How two outputs of `evolve history --json` differ; floats must be equal to the last bit."""
    one, other = ([row["key"] for row in rows] for rows in (reference, found))
    said = [f"{key} is there {other.count(key)} times" for key in sorted(set(other)) if other.count(key) > 1]
    said += [f"{key} is missing" for key in one if key not in other]
    said += [f"{key} is not in the reference" for key in other if key not in one]
    if not said and one != other:
        said.append("the rows are in another order")
    rows = {row["key"]: row for row in found}
    for row in reference:
        twin = rows.get(row["key"], row)
        said += [f"{row['key']}.{f}: {row[f]} is {twin[f]}" for f in FACTS if row[f] != twin[f]]
    return said


def torn(folder: Path, *, answers: int) -> list[str]:
    """Files of a finished run that are not whole, and what should not lie there.

    Args:
        folder: the run's.
        answers: per transcript.
    """
    said = []
    for path in sorted((folder / "transcripts").glob("*.jsonl")):
        lines = whole_lines(path)
        if lines is None or len(lines) != answers + 1:
            said.append(f"{path.name} is torn")
    for path in folder.rglob("*"):
        if path.name.endswith((".tmp", "-journal", "-wal")) or path.name.startswith("."):
            said.append(f"{path.relative_to(folder)} was left behind")
    return said


def whole_lines(path: Path) -> list[Any] | None:
    """A JSONL file's lines, ``None`` where it is torn."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if text.endswith("\n") else None
    except (OSError, ValueError):
        return None


def fingerprints(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of writing and digest of every whole transcript: what must never be made again."""
    return {
        path.stem: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (folder / "transcripts").glob("*.jsonl")
        if whole_lines(path)
    }


def trials(folder: Path) -> list[int]:
    """Trials of each of the run's Optuna studies, as Optuna itself counts them."""
    import optuna

    found = optuna.get_all_study_summaries(storage=f"sqlite:///{folder / 'history.db'}")
    return sorted(summary.n_trials for summary in found)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The history of a run whose driver was killed, read from a copy: the next driver must find it untouched."""
    from evolve.run import Run
    from evolve.views import history

    with tempfile.TemporaryDirectory(prefix="evolve-chaos-") as name:
        copy = Path(name) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("skeleton", ".skeleton-*"))
        return history(Run.open(folder.name, runs_dir=name))


def model_digest(folder: Path) -> dict[str, str]:
    """Digests of an exported model's files, but for the card, which names the run."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "README.md"
    }
