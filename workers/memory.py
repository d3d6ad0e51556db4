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

from fitness.findings import Finding
from workers.checkpoint import Checkpoint, Tensor
from workers.engine import EngineSpec
from workers.machine import Node
from workers.models import IGNORABLE

_GIB = 2**30
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Python, torch, the engine and its buffers, as resident pages; with CUDA also its libraries and pinned memory.
_PROCESS_BYTES, _PROCESS_BYTES_GPU = int(1.5 * _GIB), 4 * _GIB
_WHERE = "workers"


@dataclass(frozen=True)
class Footprint:
    """What one worker holds, in bytes.

    Attributes:
        on_gpu: whether weights and cache lie in a GPU's memory.
        weights: the running model, in the type it computes in, over all ranks.
        cache: the attention cache in main memory; 0 on a GPU, where it gets what is left.
        merge: at once while its largest tensor is merged, in float32. Nothing is kept from candidate to candidate.
        process: libraries and what they allocate.
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
        """Corrected by a worker's largest resident memory; mapped parents are a part of that."""
        rest = peak_bytes - (self.own - self.process)
        return replace(self, process=max(self.process, rest - self.parents))


def footprint(spec: EngineSpec, *, on_gpu: bool) -> Footprint:
    """Reckons from the headers of the parents' files; reads no weights.

    Args:
        spec: what each worker starts.
        on_gpu: whether it runs on GPUs.

    Raises:
        ModelError: a header cannot be read.
    """
    checkpoints = [Checkpoint(name, folder) for name, folder in spec.folders.items()]
    first = checkpoints[0]
    dtype = spec.dtype if spec.dtype != "auto" else (first.dtype if on_gpu else "float32")
    values = [_values(tensor) for name, tensor in first.tensors.items() if not name.endswith(IGNORABLE)]
    return Footprint(
        on_gpu=on_gpu,
        weights=sum(values) * _ITEM_BYTES[dtype],
        cache=0 if on_gpu or spec.engine != "vllm" else spec.kv_cache_gib * _GIB,
        # The inputs, the result, and one more on the way.
        merge=(len(checkpoints) + 2) * max(values, default=0) * _ITEM_BYTES["float32"],
        process=_PROCESS_BYTES_GPU if on_gpu else _PROCESS_BYTES,
        parents=_file_bytes(one.folder for one in checkpoints),
    )


def memory_finding(one: Footprint, node: Node, *, workers: int, spec: EngineSpec) -> Finding:
    """Whether a machine has the memory for its workers.

    Args:
        one: of each worker.
        node: the machine.
        workers: how many of them run on it.
        spec: what each of them starts.
    """
    evidence: dict[str, Any] = {**asdict(one), "workers": workers, **asdict(node)}
    if one.on_gpu and node.gpu_bytes and (lack := _gpu_lack(one, node, spec)):
        remedy = "Raise workers.tensor_parallel_size, or take GPUs with more memory."
        return Finding("memory", "error", f"{_WHERE}.tensor_parallel_size", lack, remedy, evidence)
    together = workers * one.own
    parts = {"weights": one.weights, "attention cache": one.cache} if not one.on_gpu else {}
    parts |= {"a merge": one.merge, "libraries": one.process}
    text = (
        f"{workers} worker(s) need about {_gib(one.own)} GiB each ({_listed(parts)}), together {_gib(together)}"
        + (f" of {_gib(node.memory_bytes)}" if node.memory_bytes else "")
        + f" GiB; the parents' files, {_gib(one.parents)} GiB, are mapped and shared"
    )
    if not node.memory_bytes:
        return Finding("memory", "note", _WHERE, text, evidence=evidence)
    if together > node.memory_bytes:
        fitting = node.memory_bytes // one.own
        lower = f"Lower workers.count to {fitting}" if fitting else "Take a machine with more memory"
        smaller = "" if one.on_gpu else ", set workers.dtype: bfloat16, or lower workers.kv_cache_gib"
        return Finding("memory", "error", f"{_WHERE}.count", f"{text}: too much", f"{lower}{smaller}.", evidence)
    if together + one.parents > node.memory_bytes:
        text += ". They do not stay in memory, so every merge reads from the disk"
        remedy = "Lower workers.count, put the models on a fast disk, or take a machine with more memory."
        return Finding("memory", "warning", _WHERE, text, remedy, evidence)
    return Finding("memory", "ok", _WHERE, text, evidence=evidence)


def _gpu_lack(one: Footprint, node: Node, spec: EngineSpec) -> str | None:
    """What is missing on a GPU, which must hold its part of the weights, and a tensor of a merge beside them."""
    room = node.gpu_bytes * (spec.gpu_memory_utilization if spec.engine == "vllm" else 1.0)
    each = one.weights / spec.tensor_parallel_size
    if each < room:
        return None
    return (
        f"The weights need {_gib(each)} GiB on each of {spec.tensor_parallel_size} GPU(s), and the engine may take "
        f"{_gib(room)} of {_gib(node.gpu_bytes)} GiB, its attention cache included"
    )


def _values(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


def _file_bytes(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in set(folders) for path in folder.glob("*.safetensors"))


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f}"
