"""How much memory a worker takes, from headers and settings alone, and whether the machine has it.

Rough by intent: it tells a run that fits from one that is killed in its first hour. What a worker really takes is
measured by the probe of ``evolve check``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fitness.findings import Finding, Level
from workers.checkpoint import Checkpoint
from workers.engine import EngineSpec
from workers.machine import Node
from workers.models import IGNORABLE

_GIB = 2**30
# Methods that hold little more than their inputs and a result; those that trim and vote hold masks and copies too.
_PLAIN = ("linear", "task_arithmetic", "slerp", "nuslerp", "multislerp", "passthrough")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Python, torch, the engine and its buffers, as resident pages; with CUDA also its libraries and pinned memory.
_LEAST_PROCESS_BYTES = _GIB // 2
PROCESS_BYTES, _PROCESS_BYTES_GPU = int(1.5 * _GIB), 4 * _GIB
_WHERE = "workers"


@dataclass(frozen=True)
class Footprint:
    """What one worker holds, in bytes.

    Attributes:
        on_gpu: whether weights and cache lie in a GPU's memory.
        weights: the running model, in the type it computes in, over all ranks.
        cache: the attention cache in main memory; 0 on a GPU, where it gets what is left.
        merge: at once while its largest tensor is merged, in float32; with several ranks, in each. Nothing is kept from
            candidate to candidate.
        process: libraries and what they allocate, in each rank.
        parents: the parents' files. They are mapped, so that the workers of a machine share them, and the system can
            drop them and read them again.
    """

    on_gpu: bool
    weights: int
    cache: int
    merge: int
    process: int
    parents: int

    @property
    def own(self) -> int:
        """Main memory of one worker that it shares with nobody."""
        return self.merge + self.process + (0 if self.on_gpu else self.weights + self.cache)

    def measured(self, peak_bytes: int) -> Footprint:
        """With what a worker was seen to take in place of the guess at libraries; mapped parents are a part of it."""
        rest = peak_bytes - (self.own - self.process) - self.parents
        return replace(self, process=max(_LEAST_PROCESS_BYTES, rest))


def footprint(spec: EngineSpec, *, method: str, on_gpu: bool) -> Footprint:
    """Reckons from the headers of the parents' files; reads no weights.

    Args:
        spec: what each worker starts.
        method: of the merges, by mergekit's name.
        on_gpu: whether it runs on GPUs.

    Raises:
        ModelError: a header cannot be read.
    """
    checkpoints = [Checkpoint(name, folder) for name, folder in spec.folders.items()]
    first, models = checkpoints[0], len(spec.folders)
    tied = bool(first.config.get("tie_word_embeddings"))
    values = [
        math.prod(tensor.shape)
        for name, tensor in first.tensors.items()
        if not name.endswith(IGNORABLE) and not (tied and name.endswith("lm_head.weight"))
    ]
    # In float32 copies of the largest tensor, seen with mergekit's kernels at 3 and 5 models (docs/log.md).
    copies = 2 * models + 1 if method in _PLAIN else 4 * models
    return Footprint(
        on_gpu=on_gpu,
        weights=sum(values) * _ITEM_BYTES[_computes_in(spec, first.dtype, on_gpu=on_gpu)],
        cache=0 if on_gpu or spec.engine != "vllm" else spec.kv_cache_gib * _GIB,
        merge=spec.tensor_parallel_size * copies * max(values, default=0) * _ITEM_BYTES["float32"],
        process=spec.tensor_parallel_size * (_PROCESS_BYTES_GPU if on_gpu else PROCESS_BYTES),
        parents=_file_bytes(one.folder for one in checkpoints),
    )


def _computes_in(spec: EngineSpec, stored: str, *, on_gpu: bool) -> str:
    if spec.dtype != "auto":
        return spec.dtype
    if not on_gpu:
        return "float32"
    return "bfloat16" if stored == "float32" and spec.engine == "vllm" else stored  # vLLM takes 16 bits of 32


def memory_finding(
    one: Footprint, node: Node, *, workers: int, spec: EngineSpec, gpus: float = 0.0, beside: int = 0
) -> Finding:
    """Whether a machine has the memory for its workers.

    Args:
        one: of each worker.
        node: the machine.
        workers: how many of them run on it.
        spec: what each of them starts.
        gpus: that each of them reserves; below 1 they share one.
        beside: bytes of main memory that something else takes, such as a local judge.
    """
    evidence: dict[str, Any] = {**asdict(one), "workers": workers, "beside": beside, **asdict(node)}
    if one.on_gpu and (found := _gpu_finding(one, node, spec, gpus, evidence)):
        return found
    together = workers * one.own + beside
    parts = {"weights": one.weights, "attention cache": one.cache} if not one.on_gpu else {}
    parts |= {"a merge": one.merge, "libraries": one.process}
    text = (
        f"{workers} worker(s) need about {_gib(one.own)} GiB each ({_listed(parts)}), "
        + (f"a local judge {_gib(beside)}, " if beside else "")
        + f"together {_gib(together)}"
        + (f" of {_gib(node.memory_bytes)}" if node.memory_bytes else "")
        + f" GiB; the parents' files, {_gib(one.parents)} GiB, are mapped and shared"
    )
    if not node.memory_bytes:
        return Finding("memory", "note", _WHERE, text, evidence=evidence)
    if together > node.memory_bytes:
        fitting = max(0, node.memory_bytes - beside) // one.own
        lower = f"Lower workers.count to {fitting}" if fitting else "Take a machine with more memory"
        smaller = "" if one.on_gpu else ", set workers.dtype: bfloat16, or lower workers.kv_cache_gib"
        # All but the weights is rough.
        level: Level = "error" if not one.on_gpu and workers * one.weights > node.memory_bytes else "warning"
        return Finding("memory", level, f"{_WHERE}.count", f"{text}: too much", f"{lower}{smaller}.", evidence)
    if together + one.parents > node.memory_bytes:
        text += ". They do not stay in memory, so every merge reads from the disk"
        remedy = "Lower workers.count, put the models on a fast disk, or take a machine with more memory."
        return Finding("memory", "warning", _WHERE, text, remedy, evidence)
    return Finding("memory", "ok", _WHERE, text, evidence=evidence)


def _gpu_finding(
    one: Footprint, node: Node, spec: EngineSpec, gpus: float, evidence: Mapping[str, Any]
) -> Finding | None:
    """What is missing on a GPU; ``None`` where nothing is, or nobody knows how large it is."""
    share = spec.gpu_memory_utilization if spec.engine == "vllm" else 1.0
    sharing = int(1 / gpus) if 0 < gpus < 1 else 1
    if sharing > 1 and spec.engine == "vllm" and sharing * share > 1:
        text = f"{sharing} workers share a GPU (gpus_per_worker {gpus:g}), and each may take {share:.0%} of its memory."
        remedy = f"Set workers.gpu_memory_utilization to {0.9 / sharing:.2f} or less."
        return Finding("memory", "error", f"{_WHERE}.gpu_memory_utilization", text, remedy, evidence)
    room, each = node.gpu_bytes * share / sharing, one.weights / spec.tensor_parallel_size
    if not node.gpu_bytes or each < room:
        return None
    text = (
        f"The weights need {_gib(each)} GiB on each of {spec.tensor_parallel_size} GPU(s), and the engine may take "
        f"{_gib(room)} of {_gib(node.gpu_bytes)} GiB, its attention cache included"
    )
    remedy = "Raise workers.tensor_parallel_size, or take GPUs with more memory."
    return Finding("memory", "error", f"{_WHERE}.tensor_parallel_size", text, remedy, evidence)


def _file_bytes(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in set(folders) for path in folder.glob("*.safetensors"))


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f}"
