"""What a live vLLM engine does besides greedy answers: beams, sampling, stop strings, several ranks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitness.generation import PRESETS
from workers.job import Job, JobFailed, Transcript
from workers.recipe import parent_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GREEDY = replace(PRESETS["greedy-short"], max_new_tokens=32)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 2},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.95},
        {"stop": ("の",), "repetition_penalty": 1.2},
    ],
    ids=["beams", "sampling", "stop"],
)
def test_every_way_of_decoding_is_reproducible_also_after_a_model_that_gave_nan(
    llama: Any,
    tmp_path: Path,
    conversations: Any,
    changes: dict[str, Any],
    live_vllm: Callable[..., Any],
    overflowing: Any,
) -> None:
    live = live_vllm(llama, tmp_path / "skeleton", conversations, replace(GREEDY, **changes))
    try:
        recipe = parent_recipe(llama.one, out_dtype="bfloat16")
        first, other, again = live.answer(recipe, llama.recipe("linear"), recipe)
        assert first == again
        assert first != other
        assert [r.prompt_id for r in first] == [prompt_id for prompt_id, _ in live.prompts]
        for response in first:
            assert response.finish == "stop" or response.tokens == GREEDY.max_new_tokens
            assert "の" not in response.text or "stop" not in changes
        if "temperature" in changes:
            (twice,) = live.pool.run([Job("twice", recipe, "search", repeats=2)])
            assert isinstance(twice, Transcript)
            assert twice.responses[: len(first)] == first
            assert twice.responses[len(first) :] != first
        nan, after = live.pool.run([Job("nan", overflowing(llama.one), "search"), Job("after", recipe, "search")])
        assert isinstance(nan, JobFailed)
        assert (nan.stage, nan.lost) == ("generate", ())
        assert "logits are NaN" in nan.reason
        assert isinstance(after, Transcript)
        assert after.responses == first
    finally:
        live.pool.close()


def test_two_ranks_merge_for_themselves_and_answer_alike(
    qwen: Any, tmp_path: Path, conversations: Any, live_vllm: Callable[..., Any]
) -> None:
    live = live_vllm(qwen, tmp_path / "skeleton", conversations, GREEDY, tensor_parallel_size=2)
    try:
        recipes = [qwen.recipe("linear", weight=0.4), qwen.recipe("ties")]
        answers = live.answer(*recipes)
    finally:
        live.pool.close()
    single = live_vllm(qwen, tmp_path / "single", conversations, GREEDY)
    try:
        assert answers == single.answer(*recipes)
    finally:
        single.pool.close()
