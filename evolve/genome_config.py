"""The genome block of a run config: a superset of mergekit-evolve's ``genome:``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

StoredType = Literal["float32", "bfloat16", "float16"]


class ParameterRange(BaseModel):
    """A searched parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min: float
    """Lowest value."""

    max: float
    """Highest value."""

    init: float | None = None
    """Where the search starts. Default: the middle (1 / number of models for ``weight``)."""

    scale: Literal["linear", "log"] = "linear"
    """``log`` searches the exponent; both ends must be above 0."""

    @model_validator(mode="after")
    def _ordered(self) -> ParameterRange:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min < self.max):
            raise ValueError(f"the range is upside down or empty: min {self.min} must be below max {self.max}")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"scale log needs min above 0, got {self.min}")
        if self.init is not None and not self.min <= self.init <= self.max:
            raise ValueError(f"init {self.init} lies outside {self.min} to {self.max}")
        return self


def _kind_of_setting(value: object) -> str | None:
    if isinstance(value, Mapping | ParameterRange):
        return "range"
    if isinstance(value, bool):
        return "switch"
    try:
        float(value)  # type: ignore[arg-type]  # also of text: YAML reads 1e-5 as such
    except (TypeError, ValueError, OverflowError):
        return None
    return "number"


# With a discriminator a wrong value gives one message, not one per member of the union.
Setting = Annotated[
    Annotated[ParameterRange, Tag("range")]
    | Annotated[bool, Tag("switch")]
    | Annotated[float, Field(allow_inf_nan=False), Tag("number")],
    Discriminator(
        _kind_of_setting,
        custom_error_type="setting",
        custom_error_message="expected a number, true or false, or a range to search such as {min: 0, max: 1}",
    ),
]

ModelName = Annotated[str, Field(min_length=1)]


class GenomeConfig(BaseModel):
    """What is merged, and which numbers are searched. A superset of mergekit-evolve's block."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    models: tuple[ModelName, ...] = Field(min_length=1)
    """The parents: local folders, hub ids, or ``base+adapter`` for a LoRA adapter."""

    merge_method: str
    """A method of mergekit's registry, such as task_arithmetic, ties, slerp or linear."""

    base_model: ModelName | None = None
    """The model that task vectors are measured from, where the method needs one."""

    layer_granularity: int = Field(default=0, ge=0)
    """Layers per group with parameters of its own; 0 gives all layers the same."""

    filters: tuple[str, ...] = ()
    """Substrings of tensor names (``self_attn``, ``mlp``) with parameters of their own; the rest shares one set."""

    normalize: bool | None = None
    """Divide by the sum of weights. Default as in mergekit-evolve: on for linear, ties and dare_ties."""

    allow_negative_weights: bool = False
    """Search weights from -1 too, where no range is given."""

    smooth: bool = False
    """Interpolate parameters between layer groups instead of stepping."""

    tokenizer_source: ModelName | None = None
    """``union``, ``base`` or a model: mergekit aligns vocabularies that differ."""

    allow_pickles: tuple[ModelName, ...] = ()
    """Models, named as above, whose weights are Python pickles and may be read all the same: they are converted once,
    into the cache, by a reader that builds tensors and refuses everything else."""

    allow_remote_code: tuple[ModelName, ...] = ()
    """Models, named as above, that ask to run code of their own and may be used all the same. The code is not run:
    transformers' own class of the architecture is used, where it has one."""

    parameters: dict[str, Setting] = Field(default_factory=dict)
    """Each of the method's numbers: searched (``{min, max, init, scale}``) or fixed (a number)."""

    dtype: StoredType = "float32"
    """Arithmetic of the merge."""

    out_dtype: StoredType | None = None
    """Stored values of the merge. Default: as the first parent is stored."""

    mask_seed: int = Field(default=0, ge=0)
    """Seed of the random masks of DARE and DELLA, the same for all candidates."""
