"""The run config: YAML in, one frozen ``RunConfig`` out, with errors that say where and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from sqlalchemy import make_url

from evolve.budget import BudgetConfig
from evolve.config_errors import explain_config, shortened
from evolve.errors import ConfigError
from evolve.genome_config import GenomeConfig
from fitness.chat import ChatConfig
from fitness.generation import GenerationConfig, resolve_generation
from fitness.prompts import PromptsConfig
from fitness.scorer import FitnessConfig
from workers.engine import WorkersConfig


class SearchConfig(BaseModel):
    """How CMA-ES starts and when it stops early."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sigma0: float = Field(default=0.25, gt=0, le=1)
    """First step size, in units of the unit box that every searched coordinate is scaled to."""

    noise: Literal["low", "high"] = "low"
    """``high`` doubles the default popsize: a noisy judge is averaged by more candidates, not by repeats."""

    repeats: int = Field(default=1, ge=1)
    """Answers of each candidate to each prompt, averaged; where decoding samples, each has a seed of its own. An
    evaluation then costs so many times more; a larger popsize (`noise: high`) usually buys more."""

    target_fitness: float | None = None
    """Stop after the generation in which a candidate reaches this fitness."""

    min_sigma: float = Field(default=1e-4, gt=0)
    """Stop when the step size falls below this: the distribution has collapsed to a point."""

    stagnation_generations: int = Field(default=20, ge=2)
    """Stop when this many generations in a row bring no better best fitness."""

    max_failed_share: float = Field(default=0.5, ge=0, le=1)
    """Stop, resumable, when more than this share of a generation's candidates failed."""


def _kind_of_recipe(value: object) -> str | None:
    if isinstance(value, str | Path):
        return "file"
    return "recipe" if isinstance(value, Mapping) else None


# With a discriminator a wrong value gives one message, not one per member of the union.
_UserRecipe = Annotated[
    Annotated[Path, Tag("file")] | Annotated[dict[str, Any], Tag("recipe")],
    Discriminator(
        _kind_of_recipe,
        custom_error_type="recipe",
        custom_error_message="expected the path of a mergekit YAML file, or a mergekit configuration",
    ),
]


class BaselinesConfig(BaseModel):
    """What the winner is compared with. Every parent is always a baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    equal_weights: bool = True
    """Also evaluate the merge in which every parent weighs the same."""

    recipes: tuple[_UserRecipe, ...] = ()
    """Mergekit configurations to evaluate too: YAML files, or written in place."""


class FinalistsConfig(BaseModel):
    """How the winner is chosen: on validation prompts, which the search has not seen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    top_k: int = Field(default=3, ge=1)
    """Leaders by search fitness that are re-scored beside the distribution mean."""

    repeats: int | None = Field(default=None, ge=1)
    """Answers to each validation prompt, averaged, of finalists, parents and baselines alike. Empty: 3 where decoding
    samples, else 1: repeating what is deterministic teaches nothing (for a judge's own noise see judge.samples)."""


class StoreConfig(BaseModel):
    """Where the history is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str | None = None
    """A database URL that Optuna takes, such as ``postgresql+psycopg://user@host/name`` (its password from
    ``PGPASSWORD`` or ``~/.pgpass``, so that no file of the run holds it); a relative path in it is read against the
    config. Default: SQLite in the run's folder."""


class RunConfig(BaseModel):
    """Everything a run needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    genome: GenomeConfig
    """What is merged and which numbers are searched."""

    budget: BudgetConfig
    """How much is evaluated."""

    prompts: PromptsConfig
    """What the candidates are asked."""

    fitness: FitnessConfig
    """How answers become one number."""

    generation: GenerationConfig = GenerationConfig()
    """How answers are decoded: the same for parents and merges alike."""

    chat: ChatConfig = ChatConfig()
    """How conversations become prompts."""

    search: SearchConfig = SearchConfig()
    """How CMA-ES starts and when it stops early."""

    workers: WorkersConfig = WorkersConfig()
    """Which engines answer, and where."""

    baselines: BaselinesConfig = BaselinesConfig()
    """What the winner is compared with."""

    finalists: FinalistsConfig = FinalistsConfig()
    """How the winner is chosen."""

    store: StoreConfig = StoreConfig()
    """Where the history is kept."""

    stop: Literal["in_flight", "now"] = "in_flight"
    """What a first Ctrl-C or SIGTERM does: let the evaluations in flight finish, or drop them. A second drops them."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the search's random source."""

    root: Path = Path()
    """Folder that relative paths start from; relative itself to the config file's, which is the default."""

    @property
    def finalist_repeats(self) -> int:
        """``finalists.repeats``, resolved."""
        return self.finalists.repeats or (1 if resolve_generation(self.generation).deterministic else 3)


# What mergekit-evolve's files have at their top level, and what to write here instead.
_MERGEKIT_EVOLVE = {
    "tasks": (
        "lm-eval tasks are not run here. Say what is asked and how an answer is scored instead, for example\n"
        "  prompts: {files: [prompts.jsonl]}\n"
        "  fitness: {terms: [{metric: contains}, {metric: ended, weight: 0.2}]}\n"
        "The genome block is taken as it is."
    ),
    "limit": "write prompts.search_limit instead.",
    "num_fewshot": "put the examples into the messages of your prompts file instead.",
    "shuffle": "prompts are the same for every candidate, in a fixed order; leave it out.",
    "random_init": "write genome.parameters.weight.init instead (the search starts there); leave it out.",
    "apply_chat_template": "prompts are always rendered by a chat template; choose it with chat.template.",
    "fewshot_as_multiturn": "put the examples into the messages of your prompts file instead.",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config from YAML.

    Args:
        path: the YAML file; relative paths in it are relative to its folder.
        overrides: ``dotted.path=value`` settings, the value in YAML.

    Raises:
        ConfigError: with the dotted path, the value, and what is allowed.
    """
    path = Path(path)
    return parse_config(read_yaml(path), source=str(path), overrides=overrides)


def read_yaml(path: Path) -> Any:
    """A YAML file's content; ConfigError where it cannot be read or parsed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else ".")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def parse_config(data: Any, *, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Plain data into a RunConfig. Raises ConfigError naming ``source`` and every wrong place."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: expected a mapping with genome, budget, prompts and fitness, got {data!r}.")
    data = apply_overrides(data, overrides)
    if isinstance(given := data.get("root", ""), str):
        try:
            root = (Path(source).resolve().parent / given).resolve()
        except (ValueError, OSError) as error:  # a NUL among its characters, a loop of links
            raise ConfigError(f"{source}: root: {given!r} is no folder: {error}") from None
        data = _with_absolute_paths({**data, "root": str(root)}, root)
    foreign = [f"{source}: {key}: {hint}" for key, hint in _MERGEKIT_EVOLVE.items() if key in data]
    if foreign:
        raise ConfigError("\n".join(foreign))
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain_config(error, RunConfig, source)) from None


def _with_absolute_paths(data: dict[str, Any], root: Path) -> dict[str, Any]:
    """Folders of models and the store's file spelt out, so that a run means the same from every folder."""
    result = dict(data)
    if isinstance(genome := data.get("genome"), Mapping):
        result["genome"] = genome = dict(genome)
        if "base_model" in genome:
            genome["base_model"] = _absolute_model(genome["base_model"], root)
        if genome.get("tokenizer_source") not in (None, "union", "base"):  # the last two are mergekit's words
            genome["tokenizer_source"] = _absolute_model(genome["tokenizer_source"], root)
        for key in ("models", "allow_pickles", "allow_remote_code"):
            if isinstance(genome.get(key), list):
                genome[key] = [_absolute_model(name, root) for name in genome[key]]
    store = data.get("store")
    if isinstance(store, Mapping) and isinstance(url := store.get("url"), str):
        # sqlite:///name is relative, sqlite:////name is absolute
        # (https://docs.sqlalchemy.org/en/20/core/engines.html#sqlite).
        if re.match(r"sqlite[^:]*:///[^/:]", url):
            parts = make_url(url)
            url = parts.set(database=str(root / str(parts.database))).render_as_string(hide_password=False)
        result["store"] = {**store, "url": url}
    return result


def _absolute_model(name: Any, root: Path) -> Any:
    if not isinstance(name, str) or not name:
        return name
    if (root / name).is_dir():
        return str(root / name)
    return "+".join(str(root / part) if part and (root / part).is_dir() else part for part in name.split("+"))


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` settings laid over plain data; ``c`` is YAML. The data given is not changed."""
    result = dict(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {override}: expected dotted.path=value, such as budget.max_fevals=40.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from None
        *parents, leaf = key.split(".")
        node = result
        for name in parents:
            child = node.get(name)
            if child is not None and not isinstance(child, Mapping):
                what = f"a list; set {name} as a whole" if isinstance(child, list) else shortened(child)
                raise ConfigError(f"--set {override}: {name} is {what}, not a block that has {leaf}.")
            # A copy of each block on the way: an anchor of YAML may stand for it elsewhere too.
            node[name] = node = dict(child or {})
        node[leaf] = value
    return result
