"""What an engine is, which settings it has, and how one is started.

An engine is a running model whose weights can be swapped for those of a recipe in place. There are two: vLLM, and
transformers for machines without it. The module that needs the library is imported when the engine is started.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoConfig

from fitness.generation import Generation
from fitness.responses import Response
from workers.errors import EngineSetupError
from workers.recipe import Recipe

EngineName = Literal["vllm", "transformers"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class WorkersConfig(BaseModel):
    """The ``workers:`` block: how many live engines, of what kind, and what each may use.

    Which GPUs are used is decided by ``CUDA_VISIBLE_DEVICES``, as everywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`vllm`, `transformers`, or `auto`: vLLM where it is installed, else transformers."""
    count: int | None = Field(default=None, ge=1)
    """Number of workers. Empty: one per `tensor_parallel_size` GPUs that Ray sees, else 1."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs (or CPU ranks) over which one engine spreads its model. vLLM only."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that Ray reserves per worker. Empty: `tensor_parallel_size` where there are GPUs, else 0."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs that Ray reserves per worker. Empty: the machine's cores divided by the workers, at least 1."""
    ray_address: str | None = None
    """An existing Ray cluster (`auto` or host:port). Empty: a local one for this run."""
    dtype: Dtype = "auto"
    """The type in which the engine computes. `auto`: float32 on a CPU, the parents' own on a GPU. The weights are
    rounded to the recipe's `out_dtype` first in any case."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest prompt plus answer, in tokens. Empty: what the run's prompts and `max_new_tokens` need."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, lt=1)
    """Share of a GPU's memory that vLLM may take; the rest is head-room for the swap."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Memory for vLLM's attention cache per CPU worker, in GiB."""
    enforce_eager: bool | None = None
    """Run vLLM without compiled graphs. Empty: true on a CPU, false on a GPU."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a candidate is tried, each time on another worker where possible, when workers die."""
    evaluation_timeout_seconds: float | None = Field(default=None, gt=0)
    """A worker that needs longer for one candidate is killed and replaced. Empty: no limit."""
    split_prompts: int | None = Field(default=None, ge=1, strict=True)
    """At the end of a generation, when no more candidates are left than workers, these are answered in pieces of at
    least so many prompts, which shrink with the work that is left, and free workers take pieces of the others'
    candidates. Empty: one worker answers all prompts of a candidate. Off by default, because a prompt in another batch
    can get other last digits and with them another greedy answer, because a GPU takes nearly as long for a batch of
    16 as for one of 64, and because every worker that joins in merges the candidate first. It pays where a
    candidate has many more prompts than an engine batches."""
    start_timeout_seconds: float = Field(default=900, gt=0)
    """How long an engine may take to start."""


@dataclass(frozen=True)
class EngineSpec:
    """Plain values that a worker needs to start its engine.

    Attributes:
        engine: which one.
        skeleton: folder with the merged model's config and tokenizer, without weights.
        folders: local folder per parent, by the name that recipes use.
        dtype: in which type to compute; ``auto`` is resolved on the worker's machine.
        max_model_len: longest prompt plus answer, in tokens.
        tensor_parallel_size: ranks per engine.
        gpu_memory_utilization: share of a GPU's memory for vLLM.
        kv_cache_gib: vLLM's attention cache on a CPU, in GiB.
        enforce_eager: vLLM without compiled graphs; ``None``: on a CPU.
        seed: the engine's own seed; requests carry theirs.
    """

    engine: EngineName
    skeleton: Path
    folders: Mapping[str, Path]
    dtype: Dtype = "auto"
    max_model_len: int = 2048
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.85
    kv_cache_gib: int = 1
    enforce_eager: bool | None = None
    seed: int = 0


class Engine(Protocol):
    """A running model whose weights are swapped in place."""

    def swap(self, recipe: Recipe) -> float:
        """Merges the recipe into the running model.

        Returns:
            Seconds it took.

        Raises:
            CandidateFailed: the recipe cannot be merged; ``fatal`` where the engine is unusable now.
        """
        ...

    def generate(
        self, prompts: Sequence[tuple[str, list[int]]], settings: Generation, seeds: Sequence[int]
    ) -> tuple[Response, ...]:
        """Answers the prompts with the weights of the last swap.

        Args:
            prompts: (prompt id, token ids) pairs.
            settings: how to decode.
            seeds: decoding seed of each prompt.

        Returns:
            One response per prompt, in their order.

        Raises:
            CandidateFailed: the model cannot answer; its logits are NaN, for example.
        """
        ...

    def close(self) -> None:
        """Frees the model; the engine is unusable afterwards."""
        ...


def resolve_engine(name: Literal["auto", "vllm", "transformers"]) -> EngineName:
    """``auto`` becomes vLLM where it is installed.

    Raises:
        EngineSetupError: vLLM was asked for and is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        return "vllm" if installed else "transformers"
    if name == "vllm" and not installed:
        raise EngineSetupError(
            "workers.engine is vllm, which is not installed here. Install the extra `gpu` or `cpu`, "
            "or set workers.engine to transformers."
        )
    return name


def make_spec(
    config: WorkersConfig,
    *,
    skeleton: Path,
    folders: Mapping[str, Path],
    longest_prompt_tokens: int,
    generation: Generation,
    seed: int = 0,
) -> EngineSpec:
    """The settings of one run's engines.

    Args:
        config: the ``workers:`` block.
        skeleton: what ``build_skeleton`` wrote.
        folders: local folder per parent.
        longest_prompt_tokens: over all splits.
        generation: how answers are decoded.
        seed: the engines' own seed.

    Raises:
        EngineSetupError: prompts and answers do not fit the model, or the engine cannot do what is asked.
    """
    engine = resolve_engine(config.engine)
    if engine == "transformers" and config.tensor_parallel_size > 1:
        raise EngineSetupError(
            f"workers.tensor_parallel_size is {config.tensor_parallel_size}, and the transformers engine runs on "
            "one device. Set it to 1, or workers.engine to vllm."
        )
    check_generation(engine, generation)
    needed = longest_prompt_tokens + generation.max_new_tokens
    limit = getattr(AutoConfig.from_pretrained(skeleton), "max_position_embeddings", None)
    if config.max_model_len is not None and needed > config.max_model_len:
        raise EngineSetupError(
            f"workers.max_model_len is {config.max_model_len}, but the longest prompt ({longest_prompt_tokens} "
            f"tokens) and max_new_tokens ({generation.max_new_tokens}) need {needed}. Raise it to {needed}, or "
            "leave it empty."
        )
    if limit is not None and max(needed, config.max_model_len or 0) > limit:
        raise EngineSetupError(
            f"the longest prompt ({longest_prompt_tokens} tokens) and max_new_tokens "
            f"({generation.max_new_tokens}) or workers.max_model_len ({config.max_model_len}) exceed the model's "
            f"{limit} positions. Shorten the prompts or the answers."
        )
    return EngineSpec(
        engine=engine,
        skeleton=skeleton,
        folders=dict(folders),
        dtype=config.dtype,
        max_model_len=config.max_model_len or needed,
        tensor_parallel_size=config.tensor_parallel_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_gib=config.kv_cache_gib,
        enforce_eager=config.enforce_eager,
        seed=seed,
    )


def check_generation(engine: EngineName, settings: Generation) -> None:
    """Refuses what an engine would decode differently from what was asked.

    Raises:
        EngineSetupError: names the setting and the remedy.
    """
    if settings.num_beams == 1:
        return
    if settings.temperature > 0:
        raise EngineSetupError(
            f"generation.num_beams is {settings.num_beams} with temperature {settings.temperature}: beam search "
            "here is without sampling. Set temperature to 0, or num_beams to 1."
        )
    unsupported = []
    if settings.stop:
        unsupported.append("stop strings")
    if settings.repetition_penalty != 1:
        unsupported.append("repetition_penalty")
    if engine == "vllm" and unsupported:
        raise EngineSetupError(
            f"vLLM's beam search knows no {' and no '.join(unsupported)}. Remove them, set generation.num_beams "
            "to 1, or workers.engine to transformers."
        )


def start_engine(spec: EngineSpec) -> Engine:
    """Starts the engine that the spec names, in this process.

    Raises:
        EngineSetupError: it did not start; the message carries the engine's own last line.
    """
    try:
        if spec.engine == "vllm":
            from workers.vllm_engine import VllmEngine

            return VllmEngine(spec)
        from workers.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    except EngineSetupError:
        raise
    except Exception as error:  # whatever the library raises: out of memory, unknown model, ...
        lines = [line for line in str(error).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else type(error).__name__
        raise EngineSetupError(f"the {spec.engine} engine did not start: {last}") from error


def count_workers(config: WorkersConfig, *, reserved_gpus: float = 0.0) -> int:
    """How many workers a run has: ``count``, else one per group of this machine's GPUs that a worker reserves.

    Args:
        config: the ``workers:`` block.
        reserved_gpus: GPUs that something else needs, such as a local judge.

    Raises:
        EngineSetupError: a cluster is named without a count.
    """
    if config.count is not None:
        return config.count
    if config.ray_address is not None:
        raise EngineSetupError(
            "workers.count: give it together with workers.ray_address: the plan depends on the number of workers, "
            "and a cluster's size can change."
        )
    per_worker = config.gpus_per_worker or config.tensor_parallel_size
    left = torch.cuda.device_count() - reserved_gpus
    return max(1, int(left / per_worker + 1e-9))  # (1 - 0.4) / 0.2 is 2.9999999999999996


def gpus_per_worker(config: WorkersConfig) -> float:
    """GPUs that a worker reserves on this machine."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return float(config.tensor_parallel_size) if torch.cuda.is_available() else 0.0
