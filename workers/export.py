"""Writes a recipe's model as a Hugging Face folder, and proves that it is the model that was scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workers.checkpoint import INDEX_FILE, SINGLE_FILE
from workers.disk import sync
from workers.errors import ModelError
from workers.merge import Merger
from workers.recipe import Recipe

SHARD_BYTES = 5 * 10**9


def export_model(
    recipe: Recipe,
    merger: Merger,
    skeleton: Path,
    out: Path,
    *,
    documents: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Merges the recipe into a folder, a shard at a time, and reads it back.

    Args:
        recipe: what to merge.
        merger: the same kind of merger that the engines use, opened on the skeleton's tokenizer.
        skeleton: configuration, tokenizer, generation defaults and chat template.
        out: the new folder; must not exist. It appears complete or not at all.
        documents: texts to lie beside the weights, by file name.
        shard_bytes: largest size of one weights file, in bytes.

    Raises:
        ModelError: ``out`` exists, cannot be written, or what was written is not what the merge gives.
        CandidateFailed: the recipe cannot be merged.
    """
    if out.exists():
        raise ModelError(f"{out} exists already. Give --out a folder that does not exist.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.exporting"
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    try:
        shutil.copytree(skeleton, temporary)
        for name, text in (documents or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write_weights(recipe, merger, temporary, shard_bytes)
        _verify(recipe, merger, temporary)
        for file in (*temporary.rglob("*"), temporary):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes for the owner alone
            sync(file)
        temporary.replace(out)
        sync(out.parent)
    except SafetensorError as error:
        raise ModelError(f"{out.parent} cannot be written: {error}. Is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_weights(recipe: Recipe, merger: Merger, folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending_bytes
        save_file(pending, folder / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()
        pending_bytes = 0

    for name, tensor in merger.tensors(recipe):
        if pending and pending_bytes + tensor.nbytes > shard_bytes:
            flush()
        # A clone: a passed-through tensor is a view of its parent's file, which safetensors would store whole.
        pending[name] = tensor.clone(memory_format=torch.contiguous_format)
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    # A shard's name carries the number of all of them, which is known only now.
    if len(shards) == 1:
        (folder / "shard-0.safetensors").rename(folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(recipe: Recipe, merger: Merger, folder: Path) -> None:
    """Merges again and compares bit by bit with what lies on the disk."""
    index = folder / INDEX_FILE
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    for name, tensor in merger.tensors(recipe):
        with safe_open(folder / weight_map.get(name, SINGLE_FILE), framework="pt") as shard:
            written = shard.get_tensor(name)
        if written.dtype != tensor.dtype or not torch.equal(written, tensor):
            raise ModelError(
                f"tensor {name!r} in {folder.parent} differs from the merge after writing. "
                "The disk may be full or damaged: nothing was exported, try another place."
            )
