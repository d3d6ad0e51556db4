"""For a node with an NVIDIA GPU: `make test-gpu`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitness.generation import PRESETS

pytestmark = [pytest.mark.slow, pytest.mark.gpu]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "cuda-graphs"])
def test_a_swap_on_a_gpu_reaches_the_model_that_answers(
    eager: bool, llama: Any, tmp_path: Path, conversations: Any, live_vllm: Callable[..., Any]
) -> None:
    greedy = replace(PRESETS["greedy-short"], max_new_tokens=16)
    live = live_vllm(llama, tmp_path / "skeleton", conversations, greedy, enforce_eager=eager)
    try:
        one, other = llama.recipe("linear", weight=0.9), llama.recipe("linear", weight=0.1)
        first, second, again = live.answer(one, other, one)
    finally:
        live.pool.close()
    assert [r.text for r in first] == [r.text for r in again]
    assert [r.text for r in first] != [r.text for r in second]
