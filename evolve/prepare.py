"""Everything that can be wrong, found before the first expensive step; and the composition root of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from evolve.baselines import SPLITS, baseline_recipes, baselines, parents_of
from evolve.budget import Plan, make_plan
from evolve.config import RunConfig
from evolve.environment import check_space
from evolve.errors import ConfigError
from evolve.evaluation import Candidate
from evolve.evaluator import EngineEvaluator
from evolve.genome import Genome
from evolve.judging import check_judges, gpus_of, judges_of, judging, rivals_of
from evolve.resources import configs_dir
from evolve.state import SPENDING_FILE
from fitness.chat import read_template
from fitness.generation import Generation, resolve_generation
from fitness.prompts import Prompt, load_prompts
from fitness.responses import Response
from fitness.scorer import Scoring, check_scoring
from workers.engine import EngineSpec, WorkersConfig, count_workers, gpus_per_worker, make_spec
from workers.job import Split
from workers.merge import Merger
from workers.models import Architecture, check_compatible, fingerprint, read_architecture
from workers.pool import Pool
from workers.skeleton import build_skeleton, own_template, tokenise

# On the disk, generously: a row with its recipe, once in the history and once in the transcript; an answer's prompt,
# scores and a judge's reason; a token of the answer as UTF-8 in JSON.
_BYTES_PER_EVALUATION, _BYTES_PER_ANSWER, _BYTES_PER_TOKEN = 64 * 2**10, 2 * 2**10, 8


@dataclass(frozen=True)
class Prepared:
    """A config that has been checked against the disk: all that a run needs but the engines.

    Attributes:
        config: the run config.
        architecture: layers and tensor names of the parents.
        out_dtype: how merges are stored.
        genome: the coordinate system.
        plan: what will be evaluated.
        baselines: parents, equal weights and listed recipes, on both splits, in the order of evaluation.
        prompts: per split.
        scoring: how answers are scored.
        rivals: by the dotted path of a judge's settings, the fixed answers that it compares with.
        tokens: per split, (prompt id, token ids) in the same order.
        generation: how answers are decoded.
        spec: what each worker starts.
        workers: how many.
        fingerprints: of what a run must not change half-way: ``questions`` and ``models``.
    """

    config: RunConfig
    architecture: Architecture
    out_dtype: str
    genome: Genome
    plan: Plan
    baselines: Sequence[Candidate]
    prompts: Mapping[Split, Sequence[Prompt]]
    scoring: Scoring
    rivals: Mapping[str, Mapping[str, Response]]
    tokens: Mapping[Split, Sequence[tuple[str, list[int]]]]
    generation: Generation
    spec: EngineSpec
    workers: int
    fingerprints: Mapping[str, str]


def prepare(config: RunConfig, work_dir: Path, *, plan: Plan | None = None) -> Prepared:
    """Check a config against everything on the disk; starts no engine.

    Args:
        config: the run config.
        work_dir: folder for the skeleton model.
        plan: of a run that exists already; it is not computed anew.

    Raises:
        UserMistake: one message with what, where, the limit and the remedy.
    """
    root = config.root
    generation = resolve_generation(config.generation)
    for path, repeats in (("search.repeats", config.search.repeats), ("finalists.repeats", config.finalist_repeats)):
        if repeats > 1 and generation.deterministic:
            raise ConfigError(
                f"{path}: {repeats} answers to a prompt at temperature 0 are one and the same; leave it out, or set "
                "generation.temperature above 0. A judge's own noise is averaged by fitness.judge.samples."
            )
    prompts = load_prompts(config.prompts, root=root)
    by_split = {split: [p for p in prompts if p.split == split] for split in SPLITS}
    scoring = check_scoring(config.fitness, prompts=prompts, root=root, rubrics_dir=configs_dir() / "rubrics")
    local_judges = check_judges(config)
    rivals = rivals_of(config, by_split)
    template = read_template(config.chat.template, root=root, shipped=configs_dir() / "templates")
    recipes = baseline_recipes(config)

    genome_config = config.genome
    parents = parents_of(config, recipes)
    check_compatible(parents, tokenizer_source=genome_config.tokenizer_source)
    first = parents[genome_config.models[0]]
    architecture = read_architecture(first)
    out_dtype = genome_config.out_dtype or architecture.dtype
    genome = Genome(genome_config, architecture, out_dtype=out_dtype)

    folders = {name: parent.folder for name, parent in parents.items()}
    merger = Merger(folders)
    start = genome.decode(genome.x0)
    names = merger.validate(start)
    for index, recipe in enumerate(recipes):
        if foreign := sorted(names ^ merger.validate(recipe)):
            raise ConfigError(
                f"baselines.recipes[{index}]: its merge has not the tensors of the searched ones ({foreign[0]} is in "
                "one of them only; another number of layers?), and the engines hold one shape. Leave it out."
            )
    if template is None:
        template = own_template(parents.values())
    skeleton = build_skeleton(start, parents, work_dir / "skeleton", chat_template=template)
    tokens = {split: prompt_tokens(skeleton, by_split[split], template) for split in SPLITS}
    longest = max(len(ids) for split in SPLITS for _, ids in tokens[split])
    spec = make_spec(
        config.workers,
        skeleton=skeleton,
        folders=folders,
        longest_prompt_tokens=longest,
        generation=generation,
        seed=config.seed,
    )
    compared = baselines(config, genome, recipes, out_dtype)
    workers = _count_workers(config)
    plan = plan or make_plan(
        dimensions=genome.dimensions,
        budget=config.budget,
        workers=workers,
        noisy=config.search.noise == "high",
        baseline_models=len(compared) // len(SPLITS),
        top_k=config.finalists.top_k,
    )
    return Prepared(
        config=config,
        architecture=architecture,
        out_dtype=out_dtype,
        genome=genome,
        plan=plan,
        baselines=compared,
        prompts=by_split,
        scoring=scoring,
        rivals=rivals,
        tokens=tokens,
        generation=generation,
        spec=spec,
        workers=workers,
        fingerprints={
            "models": fingerprint(parents.values()),
            "questions": _digest(
                (
                    prompts,
                    [tokens[split] for split in SPLITS],
                    generation,
                    scoring.rubric and scoring.rubric.version,
                    local_judges,
                    rivals,
                )
            ),
        },
    )


def _count_workers(config: RunConfig) -> int:
    """How many workers there are, beside the local judges.

    Raises:
        ConfigError: this machine has too few GPUs for all of them.
    """
    judges = sum(gpus_of(one) for one in judges_of(config).values())
    workers = count_workers(config.workers, reserved_gpus=judges)
    each = gpus_per_worker(config.workers)
    there = torch.cuda.device_count()
    if judges and config.workers.ray_address is None and workers * each + judges > there:
        raise ConfigError(
            f"fitness.judge.gpus: the local judge takes {judges:g} of {there} GPUs, which leaves too few for {workers} "
            f"worker(s) with {each:g} each. Let them share, as with fitness.judge.gpus: 0.3, workers.gpus_per_worker: "
            "0.7 and gpu_memory_utilization lowered for both, or put the judge on CPUs with fitness.judge.gpus: 0."
        )
    return workers


def check_disk(prepared: Prepared, folder: Path, evaluations: int) -> str | None:
    """Notice a disk that is too small for what is left to do.

    Args:
        prepared: the checked config.
        folder: the run's.
        evaluations: how many are left at most.

    Returns:
        A warning where long answers would not fit.

    Raises:
        StoreError: next to nothing is free.
    """
    return check_space(folder, disk_bytes(prepared, evaluations))


def disk_bytes(prepared: Prepared, evaluations: int) -> int:
    """What so many evaluations write at most."""
    config = prepared.config
    answers = max(
        len(prepared.prompts["search"]) * config.search.repeats,
        len(prepared.prompts["validation"]) * config.finalist_repeats,
    )
    per_answer = _BYTES_PER_ANSWER + _BYTES_PER_TOKEN * prepared.generation.max_new_tokens
    return evaluations * (_BYTES_PER_EVALUATION + answers * per_answer)


@contextmanager
def started(prepared: Prepared, folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[EngineEvaluator]:
    """Ask the judges whether they can be asked, start the workers, lend the evaluator, and leave nothing running.

    Args:
        prepared: the checked config.
        folder: the run's.
        say: tells the user what is being done.

    Raises:
        JudgeStopped: a judge cannot be asked; no worker was started.
    """
    config = prepared.config
    with ExitStack() as stack:
        judges = stack.enter_context(
            judging(config, prepared.scoring, prepared.rivals, spending=folder / SPENDING_FILE, say=say)
        )
        say(f"starting {prepared.workers} {prepared.spec.engine} worker(s)")
        pool = stack.enter_context(
            make_pool(config.workers, prepared.spec, prepared.tokens, prepared.generation, count=prepared.workers)
        )
        yield EngineEvaluator(
            pool,
            judges,
            prepared.prompts,
            transcripts=folder / "transcripts",
            min_scored_share=config.fitness.min_scored_share,
        )


def make_pool(
    settings: WorkersConfig,
    spec: EngineSpec,
    prompts: Mapping[Split, Sequence[tuple[str, list[int]]]],
    generation: Generation,
    *,
    count: int,
) -> Pool:
    """Workers, not started yet.

    Args:
        settings: the ``workers:`` block.
        spec: of the engines.
        prompts: (prompt id, token ids) per split.
        generation: how to decode.
        count: how many.
    """
    return Pool(
        spec,
        prompts,
        generation,
        count=count,
        cpus_per_worker=settings.cpus_per_worker,
        gpus_per_worker=settings.gpus_per_worker,
        max_attempts=settings.max_attempts,
        evaluation_timeout_seconds=settings.evaluation_timeout_seconds,
        start_timeout_seconds=settings.start_timeout_seconds,
        ray_address=settings.ray_address,
        split_prompts=settings.split_prompts if count > 1 else None,
    )


def prompt_tokens(skeleton: Path, prompts: Sequence[Prompt], template: str | None) -> list[tuple[str, list[int]]]:
    """(prompt id, token ids) of each prompt, as the model of a skeleton gets it.

    Raises:
        ModelError: there is no chat template, or it refuses a conversation.
    """
    conversations = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in prompts]
    ids = tokenise(skeleton, conversations, chat_template=template)
    return [(prompt.id, tokens) for prompt, tokens in zip(prompts, ids, strict=True)]


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
