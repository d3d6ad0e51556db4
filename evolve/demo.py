"""The embedded default: the whole way through the house, from nothing, on small models that it trains itself."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from evolve.config import load_config
from evolve.demo_models import DemoModels, train_demo_models
from evolve.outcome import read_answers
from evolve.resources import cache_dir, configs_dir
from evolve.run import Run, run_names
from evolve.tables import answers_table, closing_table, status_lines
from evolve.terminal import drive
from evolve.views import ranking

_SAMPLES = 6


def run_demo(*, seed: int, name: str, runs_dir: Path, overrides: Sequence[str], console: Console) -> None:
    """Train (once), search, and show what was found.

    Args:
        seed: of the search; the models are always the same.
        name: of the run; one that was interrupted is gone on with.
        runs_dir: folder of the runs.
        overrides: ``dotted.path=value`` settings.
        console: where to print.
    """
    begun = time.monotonic()
    models = demo_models(console)
    if name in run_names(runs_dir):
        run = Run.open(name, runs_dir=runs_dir)
        console.print(
            f"Run {name} exists ({run.status}): going on with it as it is. For a new one give --name or --seed."
        )
    else:
        settings = [
            f"genome.models={json.dumps([str(models.persona), str(models.facts)])}",
            f"genome.base_model={json.dumps(str(models.base))}",
            f"seed={seed}",
            *overrides,
        ]
        run = Run.create(load_config(configs_dir() / "demo" / "run.yaml", settings), runs_dir=runs_dir, name=name)
    drive(run, console)
    show_result(run, console)
    console.print(f"The demo took {(time.monotonic() - begun) / 60:.1f} min.", highlight=False)


def demo_models(console: Console) -> DemoModels:
    """The demo's three models, trained now or found in the cache."""
    disable_progress_bar()  # transformers' own, of writing a few megabytes
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"training {stage}", total=1.0)
                if not console.is_terminal:
                    console.print(f"training {stage}")
            bar.update(tasks[stage], completed=share)

        models = train_demo_models(cache_dir() / "demo-models", data_dir=configs_dir() / "demo", report=report)
    console.print(f"The models lie in {models.base.parent}", highlight=False, soft_wrap=True)
    return models


def show_result(run: Run, console: Console) -> None:
    """Table, recipe, answers side by side, and where the history lies."""
    console.print(closing_table(run))
    ranked = ranking(run)
    if not ranked:
        return
    winner = ranked[0]
    console.print("\nThe winner as a mergekit configuration:\n")
    console.print(winner.recipe.yaml(), markup=False, highlight=False, soft_wrap=True)
    rows = [row for row in run.store.rows("parent") if row.candidate.split == "validation"]
    columns = {Path(row.candidate.label).name: row.transcript_in(run.transcripts) for row in rows}
    if winner.standing is not None and winner.standing.validation is not None:
        columns["winner"] = winner.standing.validation.transcript_in(run.transcripts)
    answers = {label: read_answers(path) for label, path in columns.items() if path is not None}
    if answers:
        first = next(iter(answers.values()))
        picks = range(0, len(first), max(1, len(first) // _SAMPLES))
        texts = {label: [column[i].text for i in picks] for label, column in answers.items()}
        console.print(answers_table([first[i].prompt for i in picks], texts))
    for line in status_lines(run):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
