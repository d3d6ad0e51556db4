"""Writing a recipe's model for use elsewhere, with a card that says what it is and how sure that is."""

from __future__ import annotations

from pathlib import Path

import yaml

from evolve.baselines import baseline_recipes, parents_of
from evolve.errors import StoreError
from evolve.run import Run
from evolve.tables import closing_table, plain
from evolve.views import Ranked
from workers.errors import CandidateFailed
from workers.export import export_model
from workers.merge import Merger
from workers.models import fingerprint


def export_ranked(run: Run, ranked: Ranked, out: Path) -> None:
    """Write a ranked recipe as a Hugging Face folder, checked tensor by tensor, with card and recipe beside it.

    Raises:
        UserMistake: ``out`` exists or cannot be written, or a parent is not what it was.
    """
    parents = parents_of(run.config, baseline_recipes(run.config))
    run.check_unchanged("models", fingerprint(parents.values()))
    skeleton = run.folder / "skeleton"
    merger = Merger({name: parent.folder for name, parent in parents.items()}, tokenizer=skeleton)
    try:
        documents = {"mergekit_config.yml": ranked.recipe.yaml(), "README.md": _card(run, ranked)}
        export_model(ranked.recipe, merger, skeleton, out, documents=documents)
    except CandidateFailed as error:
        raise StoreError(f"the recipe of {ranked.label} cannot be merged: {error.reason}") from error
    except OSError as error:
        raise StoreError(f"--out {out}: cannot be written: {error.strerror or error}.") from error


def _card(run: Run, ranked: Ranked) -> str:
    genome = run.config.genome
    parents = [*genome.models, *([genome.base_model] if genome.base_model else [])]
    head = {"tags": ["merge", "mergekit"], "base_model": sorted(set(parents)), "library_name": "transformers"}
    return (
        f"---\n{yaml.safe_dump(head, allow_unicode=True)}---\n\n# {run.name}: {ranked.label}\n\n"
        f"A {genome.merge_method} merge found by an evolutionary search (CMA-ES, seed {run.config.seed}, "
        f"{len(run.store.summaries('search'))} evaluations). Recipe hash `{ranked.recipe.hash}`.\n\n"
        f"## Recipe\n\n```yaml\n{ranked.recipe.yaml()}```\n\n"
        f"## Scores\n\n```\n{plain(closing_table(run))}```\n\n"
        f"Answers were decoded with {run.config.generation.model_dump(exclude_none=True)}.\n\n"
        "## How to reproduce\n\n"
        f"`evolve run config.yaml` with the run's `config.yaml`; libraries: {run.state.versions}.\n"
    )
