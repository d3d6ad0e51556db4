"""Runs inside vLLM's worker process: merges a recipe into the model that is loaded there.

vLLM mixes this class into its worker (``worker_extension_cls``) and calls it through ``collective_rpc``. Only the
recipe crosses the process boundary: every tensor-parallel rank reads the memory-mapped parents and merges for itself,
and vLLM's own weight loader fuses and shards what it is handed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from workers.errors import CandidateFailed
from workers.merge import Merger
from workers.recipe import Recipe


class MergeExtension:
    """The methods that vLLM's worker gets in addition."""

    evolve_merger: Merger | None = None
    model_runner: Any

    def evolve_open(self, folders: Mapping[str, str], tokenizer: str) -> None:
        """Opens the parents, once per engine.

        Args:
            folders: local folder per parent.
            tokenizer: folder of the merged tokenizer.
        """
        self.evolve_merger = Merger({n: Path(f) for n, f in folders.items()}, tokenizer=Path(tokenizer))

    def evolve_merge(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """Merges the recipe into the live model.

        Args:
            recipe: as ``Recipe.to_dict`` gives it.

        Returns:
            ``None``, or why it failed: ``{"stage", "reason", "fatal"}``. Returned, not raised, because vLLM turns
            an exception in a worker into one without its type, and ends some engines over it.
        """
        if self.evolve_merger is None:
            raise RuntimeError("evolve_open has not been called")
        try:
            stream = _CompleteStream(self.evolve_merger, Recipe.from_dict(recipe))
        except CandidateFailed as failure:
            return {"stage": failure.stage, "reason": failure.reason, "fatal": False}
        try:
            self.model_runner.reload_weights(weights_iterator=iter(stream))
        except Exception as error:  # half-way through: the model is a mixture that no later reload repairs
            reason = " ".join(str(stream.failure or error).split()) or type(error).__name__
            return {"stage": "merge", "reason": reason, "fatal": True}
        _refresh_tied_heads(self.model_runner.get_model())
        if stream.failure is not None:
            return {"stage": stream.failure.stage, "reason": stream.failure.reason, "fatal": False}
        return None

    def evolve_clear_cache(self) -> None:
        """Overwrites the attention cache with zeros.

        Attention kernels may read a block beyond the tokens that are in it and multiply what they find by 0, and
        0 x NaN is NaN: after a model that gave NaN, the answers of the next ones would be NaN too (seen on a CPU).
        """
        for cache in self.model_runner.kv_caches:
            for tensor in [cache] if isinstance(cache, torch.Tensor) else cache:
                tensor.zero_()


def _refresh_tied_heads(model: torch.nn.Module) -> None:
    """Has tied output heads derive again what they derive from the embedding.

    A reload handles a tied head as not given and leaves it as it was ("Limitations" in
    ``vllm.model_executor.model_loader.reload``). Its weight is the embedding's and therefore new, but on a CPU vLLM
    multiplies by a packed copy of it, which is old: without this, answers come from two models.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = {
        module.weight.data_ptr()
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.data_ptr() in embeddings:
            module.quant_method.process_weights_after_loading(module)


class _CompleteStream:
    """A recipe's tensors; where one cannot be merged, the rest comes from a parent.

    vLLM cannot abandon a reload: it must be given every tensor. So that one candidate with a NaN does not cost an
    engine (20 s and more), the failed tensor and those after it are filled from a parent, and the failure is kept for
    the caller. The weights are useless then, and the next swap replaces all of them.
    """

    def __init__(self, merger: Merger, recipe: Recipe) -> None:
        self.failure: CandidateFailed | None = None
        self._merger = merger
        self._recipe = recipe
        self._tensors = merger.tensors(recipe)  # plans now, so that what mergekit refuses touches no weight

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        given: set[str] = set()
        try:
            for name, tensor in self._tensors:
                given.add(name)
                yield name, tensor
        except CandidateFailed as failure:
            self.failure = failure
            for name, tensor in self._merger.stand_in(self._recipe):
                if name not in given:
                    yield name, tensor
