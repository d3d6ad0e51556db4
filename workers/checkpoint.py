"""Reads what a checkpoint folder holds without loading its weights: names, shapes and stored types.

Only safetensors headers are read, so a 70B folder costs milliseconds.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from workers.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: Everything of a model folder that is not weights and that a merged model needs as well.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "chat_template.jinja",
    "chat_template.json",
)

_PICKLES = ("*.bin", "*.pt", "*.pth")
_NO_WEIGHTS = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin"})
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor.

    Attributes:
        shape: its axes.
        dtype: as torch spells it (``bfloat16``), or safetensors' own name where it is no float.
        file: the safetensors file that holds it.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a configuration and safetensors weights, single or sharded.

    Attributes:
        name: how the user calls the model, for messages.
        folder: where it lies.
    """

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` as plain data.

        Raises:
            ModelError: it is missing or no JSON.
        """
        path = self.folder / "config.json"
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(
                f"model {self.name!r}: {self.folder} has no config.json, so it is no Hugging Face model folder. "
                "Give the folder that `save_pretrained` wrote."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"model {self.name!r}: {path} is not readable as JSON ({error}). Copy the model again."
            ) from error
        if not isinstance(data, dict):
            raise ModelError(f"model {self.name!r}: {path} is no JSON object. Copy the model again.")
        return data

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by name, from the headers alone.

        Raises:
            ModelError: a shard is missing or damaged.
        """
        found: dict[str, Tensor] = {}
        for file in self._files():
            path = self.folder / file
            try:
                with safe_open(path, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                        header = shard.get_slice(name)
                        dtype = str(header.get_dtype())
                        found[name] = Tensor(tuple(header.get_shape()), _DTYPES.get(dtype, dtype), file)
            except FileNotFoundError as error:
                raise ModelError(
                    f"model {self.name!r}: {INDEX_FILE} names {file}, which is not in {self.folder}. "
                    "The copy or download is incomplete: fetch the model again."
                ) from error
            except (SafetensorError, OSError) as error:
                raise ModelError(f"model {self.name!r}: {path} is damaged ({error}). Fetch the model again.") from error
        return found

    @cached_property
    def dtype(self) -> str:
        """The type that holds most of the stored values: ``bfloat16``, ``float16`` or ``float32``.

        Raises:
            ModelError: the weights are of another type, quantised ones for instance.
        """
        values: Counter[str] = Counter()
        for tensor in self.tensors.values():
            size = 1
            for axis in tensor.shape:
                size *= axis
            values[tensor.dtype] += size
        dtype = values.most_common(1)[0][0] if values else "none"
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ModelError(
                f"model {self.name!r}: its weights are stored as {dtype}; a merge needs bfloat16, float16 or "
                "float32. Use the model's unquantised version."
            )
        return dtype

    def _files(self) -> list[str]:
        index = self.folder / INDEX_FILE
        if not index.exists():
            return [SINGLE_FILE]
        try:
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or JSON of another shape
            raise ModelError(f"model {self.name!r}: {index} is damaged. Fetch the model again.") from error


def pickles(folder: Path) -> tuple[str, ...]:
    """File names of weights in pickle format; a trainer's own leavings are none."""
    found = {path.name for pattern in _PICKLES for path in folder.glob(pattern)}
    return tuple(sorted(found - _NO_WEIGHTS))
