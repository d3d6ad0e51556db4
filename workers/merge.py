"""Executes a recipe tensor by tensor: mergekit plans and computes, nothing touches the disk.

``MergePlanner.plan_to_disk`` resolves a configuration to one task per output tensor. mergekit's executor would
schedule these tasks and its writer would store the results; here each task is executed on its own, on the CPU,
in the order of the model, and its result is handed out. Semantics are therefore mergekit's to the last bit.

Random masks (DARE, DELLA) are the exception: mergekit draws them from torch's global generator in call order.
Here the generator is seeded per tensor from (mask seed, tensor name), so that a mask is a function of the recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mergekit.architecture import ModelArchitecture, get_architecture_info
from mergekit.common import ModelPath, ModelReference, dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.tokenizer import BuildTokenizer, TokenizerInfo
from mergekit.tokenizer.build import build_tokenizer
from transformers import AutoConfig, PretrainedConfig

from workers.errors import CandidateFailed, ModelError
from workers.recipe import Recipe

# The keys under which a mergekit configuration names a model, and the words that name none there.
_MODEL_KEYS: Mapping[str | None, frozenset[str]] = {
    "model": frozenset(),
    "base_model": frozenset(),
    "tokenizer_source": frozenset({"union", "base"}),
    "source": frozenset({"union", "base"}),
}


class Merger:
    """Merges recipes over a fixed set of parents.

    Parents are memory-mapped and stay open between recipes, so that all workers of a node share one copy in the
    page cache. Not thread-safe.

    Args:
        folders: local folder per model name, as the recipes write the names.
        tokenizer: folder of the tokenizer that the merged models have, for recipes with ``tokenizer_source``.
            Give the skeleton's in workers: the order of a ``union`` vocabulary then is the same for all of them,
            and a parent alone is embedded into the same vocabulary. ``None`` builds it from the recipe.
    """

    def __init__(self, folders: Mapping[str, Path], *, tokenizer: Path | None = None) -> None:
        self._references = {name: _reference(folder) for name, folder in folders.items()}
        for reference in self._references.values():
            LoaderCache().loaders.pop(reference, None)  # the process's cache may know an older content of the folder
        self._tokenizer = tokenizer
        self._options = MergeOptions()
        self._architectures: dict[frozenset[ModelReference], ModelArchitecture] = {}
        self._tokenizers: dict[BuildTokenizer, TokenizerInfo] = {}

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged model, one tensor at a time.

        Returns:
            Names and values: CPU tensors in the recipe's ``out_dtype``, in the order of the model's layers. A value
            may be a view of a memory-mapped parent: copy it, never write to it.

        Raises:
            CandidateFailed: mergekit refuses the recipe (at once), or a merged tensor is not finite (on the way).
        """
        try:
            tasks = self._plan(recipe)
        except Exception as error:  # mergekit raises RuntimeError, ValueError, pydantic's ValidationError, ...
            raise CandidateFailed("merge", _one_line(error)) from error
        merged = ((task.tensor_name, self._compute(task, recipe)) for task in tasks)
        return ((name, tensor) for name, tensor in merged if tensor is not None)

    def validate(self, recipe: Recipe) -> set[str]:
        """Plans the recipe without reading a weight.

        Returns:
            The names of the tensors that it gives.

        Raises:
            ModelError: mergekit refuses it; the message is mergekit's.
        """
        try:
            return {task.tensor_name for task in self._plan(recipe)}
        except Exception as error:
            raise ModelError(f"mergekit refuses this merge: {_one_line(error)}") from error

    def tokenizer(self, recipe: Recipe) -> Any | None:
        """The merged tokenizer (transformers'), or ``None`` where the recipe has no ``tokenizer_source``."""
        for task in self._plan(recipe):
            for dependency in _walk(task.tensor_task):
                if isinstance(dependency, BuildTokenizer):
                    return self._build_tokenizer(dependency).tokenizer
        return None

    def stand_in(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the recipe's donor: same names and shapes as the merge's, vocabulary included."""
        keys = ("dtype", "out_dtype", "tokenizer_source", "tokenizer")
        config = {key: recipe.config[key] for key in keys if recipe.config.get(key) is not None}
        folder = self.donor(recipe)
        name = next(n for n, r in self._references.items() if r.model.path == str(folder))
        return self.tensors(Recipe({"merge_method": "passthrough", "models": [{"model": name}], **config}))

    def donor(self, recipe: Recipe) -> Path:
        """The folder whose config and tokenizer a merge inherits: the base model's, else the first model's."""
        return Path(_donor(self._configuration(recipe)).model.path)

    def _configuration(self, recipe: Recipe) -> MergeConfiguration:
        return MergeConfiguration.model_validate(self._localise(recipe.config))

    def _localise(self, value: Any, key: str | None = None) -> Any:
        """A copy of the configuration with every model name replaced by its local folder."""
        if isinstance(value, Mapping):
            return {k: self._localise(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._localise(v) for v in value]
        if key not in _MODEL_KEYS or not isinstance(value, str) or value in _MODEL_KEYS[key]:
            return value
        if value not in self._references:
            raise ValueError(f"the recipe names the model {value!r}, which is not among the parents")
        # As a mapping, so that + and @ in a folder's name are not read as LoRA and revision.
        return {"model": {"path": self._references[value].model.path}}

    def _plan(self, recipe: Recipe) -> list[SaveTensor]:
        config = self._configuration(recipe)
        models = frozenset(config.referenced_models())
        if models not in self._architectures:
            self._architectures[models] = get_architecture_info(config, self._options)
        planner = MergePlanner(config, self._architectures[models], self._options, _model_config(config))
        tasks = planner.plan_to_disk("")  # the writer's path: no writer is ever executed
        return [task for task in tasks if isinstance(task, SaveTensor)]

    def _compute(self, task: SaveTensor, recipe: Recipe) -> torch.Tensor | None:
        name = task.tensor_name
        try:
            with _seeded(recipe.mask_seed, name):
                tensor = self._execute(task.tensor_task)
            dtype = dtype_from_name(task.dtype)
        except Exception as error:
            raise CandidateFailed("merge", f"tensor {name}: {_one_line(error)}") from error
        if tensor is None:
            if task.optional:
                return None
            raise CandidateFailed("merge", f"tensor {name}: no model has it")
        merged: torch.Tensor = tensor.to(dtype) if dtype is not None else tensor
        if merged.is_floating_point() and not torch.isfinite(merged).all():
            raise CandidateFailed("merge", f"tensor {name}: the merge gave NaN or infinity")
        return merged

    def _execute(self, task: Task[Any]) -> Any:
        if isinstance(task, BuildTokenizer):
            return self._build_tokenizer(task)
        return task.execute(**{key: self._execute(value) for key, value in task.arguments().items()})

    def _build_tokenizer(self, task: BuildTokenizer) -> TokenizerInfo:
        """mergekit's own function, but with the models in a fixed order.

        mergekit lists the referenced models from a set, so that a union vocabulary is numbered differently in
        every process.
        """
        if task not in self._tokenizers:
            models = [m for m in dict.fromkeys(self._references.values()) if m in task.referenced_models]
            source = task.tokenizer_source if self._tokenizer is None else _reference(self._tokenizer)
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                self._tokenizers[task] = build_tokenizer(
                    base_model=task.base_model or models[0],
                    referenced_models=models,
                    tokenizer_source=source,
                    trust_remote_code=False,
                    add_tokens=task.add_tokens or (),
                )
        return self._tokenizers[task]


def mask_seed_of(mask_seed: int, tensor_name: str) -> int:
    """The 63-bit seed of one tensor's masks: SHA-256 of recipe seed and tensor name."""
    digest = hashlib.sha256(f"{mask_seed}:{tensor_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def _seeded(mask_seed: int | None, tensor_name: str) -> Iterator[None]:
    if mask_seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator only: an engine's CUDA generators are none of our business.
        torch.default_generator.manual_seed(mask_seed_of(mask_seed, tensor_name))
        yield


def _reference(folder: Path) -> ModelReference:
    return ModelReference(model=ModelPath(path=str(folder)))


def _donor(config: MergeConfiguration) -> ModelReference:
    if config.base_model is not None:
        return config.base_model
    if config.models:
        return config.models[0].model
    if config.slices:
        return config.slices[0].sources[0].model
    module = next(iter((config.modules or {}).values()))
    return module.models[0].model if module.models else module.slices[0].sources[0].model


def _model_config(config: MergeConfiguration) -> PretrainedConfig:
    """The merged model's configuration; same-shaped merges change neither layers nor sizes."""
    result = AutoConfig.from_pretrained(_donor(config).model.path, trust_remote_code=False)
    dtype = config.out_dtype or config.dtype
    if dtype:
        result.dtype = dtype
    return result


def _walk(task: Task[Any]) -> Iterator[Task[Any]]:
    yield task
    for dependency in task.arguments().values():
        yield from _walk(dependency)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:500] or type(error).__name__
