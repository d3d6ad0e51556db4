from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fitness.errors import ScoringSetupError
from fitness.generation import Generation, GenerationConfig, resolve_generation


def resolved(**settings: Any) -> Generation:
    return resolve_generation(GenerationConfig(**settings))


def test_the_presets_are_those_of_the_field_report() -> None:
    assert resolved() == Generation("greedy-short", max_new_tokens=64)
    beam = resolved(preset="beam-short")
    assert (beam.num_beams, beam.temperature, beam.max_new_tokens) == (2, 0, 64)
    long = resolved(preset="sampling-long")
    assert (long.num_beams, long.temperature, long.max_new_tokens) == (1, 0.3, 512)


def test_only_sampling_is_not_deterministic() -> None:
    assert resolved().deterministic
    assert resolved(preset="beam-short").deterministic
    assert not resolved(preset="sampling-long").deterministic


def test_a_setting_overrides_its_preset_and_nothing_else() -> None:
    changed = resolved(preset="sampling-long", max_new_tokens=24, top_p=0.9, stop=("\n",), seed=3)
    assert changed == Generation("sampling-long", 24, temperature=0.3, top_p=0.9, stop=("\n",), seed=3)
    assert resolved(preset="sampling-long", temperature=0.0).deterministic


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "beam-short", "temperature": 0.3}, "generation.num_beams: 2 beams"),
        ({"preset": "sampling-long", "num_beams": 4}, "generation.num_beams: 4 beams"),
        ({"top_p": 0.9}, "generation.top_p: 0.9 has no effect"),
        ({"top_k": 40}, "generation.top_k: 40 has no effect"),
        ({"stop": ("",)}, "generation.stop: an empty text"),
    ],
)
def test_contradictions_are_explained(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ScoringSetupError) as caught:
        resolved(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"preset": "beam"}],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationConfig(**settings)
