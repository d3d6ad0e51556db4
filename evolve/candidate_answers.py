"""Possible parents answer for themselves: models of one family in one engine, scored by the run's fitness."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evolve.baselines import SPLITS
from evolve.config import RunConfig
from evolve.judging import judges_of, judging, rivals_of
from evolve.machine_checks import seen_by_all
from evolve.prepare import make_pool, prompt_tokens
from evolve.probe import RUN, Asked, asked_of, spread
from evolve.probe_scores import Marks, score_answers
from evolve.resources import configs_dir
from evolve.short_names import short_names
from fitness.errors import UserMistake
from fitness.generation import resolve_generation
from fitness.prompts import Prompt, load_prompts
from fitness.scorer import check_scoring
from workers.engine import make_spec
from workers.errors import WorkersLost
from workers.job import Job
from workers.models import Parent, read_architecture
from workers.recipe import parent_recipe
from workers.skeleton import build_skeleton, own_template

Say = Callable[[str], None]


def ask_candidates(
    kinds: Sequence[Sequence[str]],
    parents: Mapping[str, Parent],
    config: RunConfig,
    *,
    template: str | None,
    count: int,
    say: Say,
) -> tuple[list[Asked], list[Marks]]:
    """Each model answers some prompts of the search, and the fitness of the config scores.

    Args:
        kinds: names of models, those of one family together.
        parents: their folders.
        config: says what is asked, how answers are decoded and scored.
        template: Jinja text that conversations are written with; ``None`` takes the models' own.
        count: how many prompts.
        say: tells the user what is being done.

    Raises:
        UserMistake: prompts, scoring or judge cannot work.
        JudgeStopped: the judge cannot be asked.
    """
    prompts = load_prompts(config.prompts, root=config.root)
    scoring = check_scoring(config.fitness, prompts=prompts, root=config.root, rubrics_dir=configs_dir() / "rubrics")
    by_split = {split: [one for one in prompts if one.split == split] for split in SPLITS}
    few = spread(by_split["search"], count)
    # The search's judge alone: a judge of the finals would be started, or asked a question, for nothing.
    fitness = config.fitness.model_copy(update={"final_judge": None})
    config = config.model_copy(update={"fitness": fitness})
    with judging(config, scoring, rivals_of(config, by_split), spending=None, say=say) as stage:
        asked = [one for kind in kinds for one in _answers(kind, parents, config, template, few, say)]
        if judges_of(config):
            say("asking the judge about the answers")
        scored = score_answers(asked, stage, min_scored_share=config.fitness.min_scored_share)
    return asked, list(scored.marks)


def _answers(
    kind: Sequence[str],
    parents: Mapping[str, Parent],
    config: RunConfig,
    template: str | None,
    prompts: Sequence[Prompt],
    say: Say,
) -> list[Asked]:
    members = {name: parents[name] for name in kind}
    generation = resolve_generation(config.generation)
    source = config.genome.tokenizer_source if len(kind) > 1 else None
    say(f"starting an engine for {len(kind)} model(s): {', '.join(short_names(list(kind)))}")
    try:
        template = template or own_template(members.values())
        recipes = {
            name: parent_recipe(name, out_dtype=read_architecture(parent).dtype, tokenizer_source=source)
            for name, parent in members.items()
        }
        with tempfile.TemporaryDirectory(dir=seen_by_all(config)) as work_dir:
            skeleton = build_skeleton(recipes[kind[0]], members, Path(work_dir) / "skeleton", chat_template=template)
            tokens = prompt_tokens(skeleton, prompts, template)
            spec = make_spec(
                config.workers,
                skeleton=skeleton,
                folders={name: parent.folder for name, parent in members.items()},
                longest_prompt_tokens=max(len(ids) for _, ids in tokens),
                generation=generation,
                seed=config.seed,
            )
            jobs = [
                Job(f"candidate-{i:03d}", recipes[name], "search", seed=generation.seed) for i, name in enumerate(kind)
            ]
            pairs = dict.fromkeys(SPLITS, tokens)
            with make_pool(config.workers, spec, pairs, generation, count=1) as pool:
                results = {result.job.key: result for result in pool.run(jobs)}
    except (UserMistake, WorkersLost) as error:
        return [Asked(name, RUN, generation, prompts, (), 0.0, str(error)) for name in kind]
    return [asked_of(results[job.key], name, RUN, generation, prompts) for job, name in zip(jobs, kind, strict=True)]
