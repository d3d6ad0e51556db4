"""Converts a checkpoint in pickle format to safetensors without running any of its code."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import pickle
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file

from workers.checkpoint import INDEX_FILE, SINGLE_FILE, pickles
from workers.errors import ModelError

_PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "consolidated*.pth", "*.pt")
_INDEX = "pytorch_model.bin.index.json"
_KEPT = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab*.txt", "README.md", "LICENSE*")


def convert_checkpoint(folder: Path, out: Path) -> None:
    """Writes the folder again with its weights as safetensors.

    The pickles are read with ``torch.load(weights_only=True)``, which builds tensors and refuses everything else.
    Every input file becomes one output file; tensors that share memory (tied embeddings) keep their first name.

    Args:
        folder: a model or PEFT adapter folder with ``.bin`` or ``.pt`` weights.
        out: the new folder; must not exist.

    Raises:
        ModelError: there is nothing to convert, ``out`` exists, or a file holds more than tensors.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}. Give a folder with .bin or .pt weights.")
    if out.exists():
        raise ModelError(f"{out} exists already. Give --out a folder that does not exist.")
    files = _weight_files(folder)
    if not files:
        raise ModelError(f"{folder} has no pickle weights ({', '.join(_PICKLES)}); there is nothing to convert.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".converting-"))
    try:
        _write(files, temporary)
        for pattern in _KEPT:
            for path in folder.glob(pattern):
                if path.name != _INDEX:
                    shutil.copy2(path, temporary / path.name)
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def converted(folder: Path, cache_dir: Path) -> Path:
    """The folder's safetensors twin in the cache, made where it is not there yet.

    Raises:
        ModelError: as :func:`convert_checkpoint`.
    """
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.iterdir()):  # a tokenizer that was mended counts too
        digest.update(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}".encode())
    out = cache_dir / "converted" / f"{folder.name}-{digest.hexdigest()[:12]}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        if not out.exists():
            convert_checkpoint(folder, out)
    return out


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / name for name in names]
    there = pickles(folder)
    for pattern in _PICKLES:  # the first kind that there is
        if found := fnmatch.filter(there, pattern):
            return [folder / name for name in found]
    return []


def _write(files: list[Path], out: Path) -> None:
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, path in enumerate(files, start=1):
        if path.name == "adapter_model.bin":
            target = "adapter_model.safetensors"
        elif len(files) == 1:
            target = SINGLE_FILE
        else:
            target = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = _unshared(_read(path))
        save_file(tensors, out / target, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, target)
        total_bytes += sum(t.numel() * t.element_size() for t in tensors.values())
    if len(files) > 1:
        content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{_INDEX} names {path.name}, which is missing. Fetch the model again.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path} holds something else than tensors, or is damaged, and was not loaded "
            f"({str(error).splitlines()[0]}). Get the model as safetensors from its author."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(t, torch.Tensor) for t in content.values()):
        raise ModelError(f"{path} is no state dict (names to tensors). Export the model with `save_pretrained`.")
    return content


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drops second names of one tensor and copies views, because safetensors stores plain blocks.

    A loader restores a dropped second name by tying, as it does for what ``save_pretrained`` writes.
    """
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, int, torch.Size, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        kept[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    return kept
