"""How answers are decoded: named presets, and what a config may change of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fitness.errors import ScoringSetupError

PresetName = Literal["beam-short", "greedy-short", "sampling-long"]


class GenerationConfig(BaseModel):
    """How answers are decoded: a preset, and what differs from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    preset: PresetName = "greedy-short"
    """``greedy-short``: greedy, 64 new tokens. ``beam-short``: beam search of 2 without sampling, 64 new
    tokens, on engines that have beam search. ``sampling-long``: sampling at temperature 0.3, 512 new tokens.
    """
    max_new_tokens: int | None = Field(default=None, ge=1)
    """An answer is cut after this many tokens."""
    temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    """0 is greedy; above 0 samples."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample from the smallest set of tokens that holds this probability; 1 is off."""
    top_k: int | None = Field(default=None, ge=0)
    """Sample from this many of the likeliest tokens; 0 is off."""
    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Beams of the beam search; 1 is none."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    """Divides the scores of tokens already seen; 1 is off."""
    stop: tuple[str, ...] | None = None
    """An answer ends before any of these texts."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decoding seed, the same for every candidate of a run."""


@dataclass(frozen=True)
class Generation:
    """Resolved decoding settings.

    Attributes:
        preset: name of the preset it started from.
        max_new_tokens: at least 1.
        temperature: 0 is greedy.
        top_p: in (0, 1], 1 is off.
        top_k: 0 is off.
        num_beams: 1 is none.
        repetition_penalty: 1 is off.
        stop: texts before which an answer ends.
        seed: decoding seed.
    """

    preset: PresetName
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @property
    def deterministic(self) -> bool:
        """Whether the same weights give the same answers whatever the seed."""
        return self.temperature == 0


PRESETS: dict[PresetName, Generation] = {
    "beam-short": Generation("beam-short", max_new_tokens=64, num_beams=2),
    "greedy-short": Generation("greedy-short", max_new_tokens=64),
    "sampling-long": Generation("sampling-long", max_new_tokens=512, temperature=0.3),
}


def resolve_generation(config: GenerationConfig) -> Generation:
    """Completes the config from its preset.

    Raises:
        ScoringSetupError: settings that contradict each other, or that could have no effect.
    """
    changed = {name: value for name, value in config.model_dump(exclude={"preset"}).items() if value is not None}
    generation = replace(PRESETS[config.preset], **changed)
    if generation.num_beams > 1 and generation.temperature > 0:
        raise ScoringSetupError(
            f"generation.num_beams: {generation.num_beams} beams search and temperature"
            f" {generation.temperature:g} samples, which exclude each other; set num_beams: 1 or temperature: 0"
        )
    if generation.deterministic:
        for name, value, off in (("top_p", generation.top_p, 1), ("top_k", generation.top_k, 0)):
            if value != off:
                raise ScoringSetupError(
                    f"generation.{name}: {value:g} has no effect without sampling (temperature is 0);"
                    f" set a temperature above 0 or leave {name} out"
                )
    if not all(generation.stop):
        raise ScoringSetupError("generation.stop: an empty text would end every answer before it starts")
    return generation
