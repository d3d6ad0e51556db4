"""A recipe: one merge, written as the mergekit configuration that makes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml


@dataclass(frozen=True)
class Recipe:
    """A mergekit configuration, plus the seed of its masks for methods that draw some.

    Attributes:
        config: the mergekit configuration as plain JSON-able data; models are written as the user
            wrote them (folder, hub id, ``base+adapter``), so that it runs in mergekit unchanged.
        mask_seed: seed of the random masks (DARE, DELLA), ``None`` for deterministic methods.
    """

    config: Mapping[str, Any]
    mask_seed: int | None = field(default=None)

    @cached_property
    def hash(self) -> str:
        """Its identity: the first 16 hex digits of the SHA-256 of its canonical JSON."""
        content = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        return {"config": dict(self.config), "mask_seed": self.mask_seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Plain data back into a recipe."""
        return cls(config=data["config"], mask_seed=data["mask_seed"])

    def yaml(self) -> str:
        """The mergekit configuration as YAML that ``mergekit-yaml`` accepts."""
        note = ""
        if self.mask_seed is not None:
            note = (
                f"# Random masks were drawn per tensor from seed {self.mask_seed};"
                " mergekit-yaml draws others.\n"
                "# `evolve export` writes exactly the model that was scored.\n"
            )
        return note + yaml.safe_dump(
            dict(self.config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=200
        )


def parent_recipe(model: str, *, dtype: str = "float32", out_dtype: str, tokenizer_source: str | None = None) -> Recipe:
    """A parent as a recipe of its own (mergekit's ``passthrough``), so that baselines are ordinary jobs."""
    config: dict[str, Any] = {
        "merge_method": "passthrough",
        "models": [{"model": model}],
        "dtype": dtype,
        "out_dtype": out_dtype,
    }
    if tokenizer_source is not None:
        config["tokenizer_source"] = tokenizer_source
    return Recipe(config)
