"""The acceptance of the swap: a live vLLM engine answers as a fresh one started on the folder that mergekit writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mergekit.scripts.run_yaml import main as mergekit_yaml

from fitness.generation import PRESETS
from workers.export import export_model
from workers.job import Job, JobFailed, Transcript
from workers.merge import Merger
from workers.recipe import Recipe, parent_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GREEDY = replace(PRESETS["greedy-short"], max_new_tokens=32)
METHODS = ["linear", "slerp", "task_arithmetic", "ties", "dare_ties"]
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@pytest.fixture(scope="module", params=["llama", "qwen"])
def live(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    conversations: Any,
    live_vllm: Callable[..., Any],
) -> Iterator[Any]:
    family = request.getfixturevalue(request.param)
    live = live_vllm(family, tmp_path_factory.mktemp(request.param) / "skeleton", conversations, GREEDY)
    yield live
    live.pool.close()


def fresh_answers(folders: list[Path], prompts: list[tuple[str, list[int]]], tmp_path: Path) -> list[Any]:
    request, answers = tmp_path / "request.json", tmp_path / "answers.json"
    content = {
        "folders": [str(folder) for folder in folders],
        "prompts": [ids for _, ids in prompts],
        "max_new_tokens": GREEDY.max_new_tokens,
    }
    request.write_text(json.dumps(content))
    script = Path(__file__).with_name("fresh_engine.py")
    subprocess.run([sys.executable, str(script), str(request), str(answers)], check=True, env=os.environ | ENVIRONMENT)
    return list(json.loads(answers.read_text())["answers"])


def test_swapped_answers_are_those_of_fresh_engines(live: Any, tmp_path: Path) -> None:
    # Weights that differ: with equal ones whose sum is 1, task_arithmetic is linear.
    recipes = [live.family.recipe(method, weight=0.2 + 0.1 * i) for i, method in enumerate(METHODS)]
    folders = []
    for method, recipe in zip(METHODS, recipes, strict=True):
        folder = tmp_path / method
        if recipe.mask_seed is not None:  # mergekit would draw other masks
            export_model(recipe, Merger(live.family.folders, tokenizer=live.skeleton), live.skeleton, folder)
        else:
            (tmp_path / f"{method}.yml").write_text(recipe.yaml())
            mergekit_yaml.main([f"{folder}.yml", str(folder), "--quiet"], standalone_mode=False)
        folders.append(folder)
    swapped = live.answer(*recipes)
    fresh = fresh_answers(folders, live.prompts, tmp_path)
    for method, ours, theirs in zip(METHODS, swapped, fresh, strict=True):
        assert [[r.text, r.tokens, r.finish] for r in ours] == theirs, method
    assert len({tuple(r.text for r in responses) for responses in swapped}) == len(METHODS)


def test_answers_do_not_depend_on_the_recipe_before(live: Any) -> None:
    first, other = live.family.recipe("linear", weight=0.3), live.family.recipe("linear", weight=0.7)
    a, b, again = live.answer(first, other, first)
    assert a == again
    assert a != b


def test_a_merge_that_fails_half_way_costs_no_engine(live: Any) -> None:
    good = parent_recipe(live.family.two, out_dtype="bfloat16")
    expected = live.answer(good)[0]
    bad = live.family.recipe("linear", weight=float("nan"))
    # Finite in the first tensors, not in the last ones.
    late = Recipe(json.loads(json.dumps(dict(live.family.recipe("linear").config))))
    late.config["models"][0]["parameters"]["weight"] = [
        {"filter": "model.norm", "value": float("nan")},
        {"value": 0.5},
    ]
    jobs = [Job(f"{i}", recipe, "search") for i, recipe in enumerate((bad, late, good))]
    results = {result.job.key: result for result in live.pool.run(jobs)}
    for key, tensor in (("0", "embed_tokens"), ("1", "model.norm")):
        failed = results[key]
        assert isinstance(failed, JobFailed)
        assert (failed.stage, failed.job.attempt) == ("merge", 1)
        assert tensor in failed.reason
    done = results["2"]
    assert isinstance(done, Transcript)
    assert done.job.attempt == 1
    assert done.responses == expected


def test_a_model_that_gives_nan_fails_alone_and_leaves_nothing_in_the_cache(live: Any, overflowing: Any) -> None:
    good = parent_recipe(live.family.two, out_dtype="bfloat16")
    expected = live.answer(good)[0]
    jobs = [Job("nan", overflowing(live.family.two), "search"), Job("good", good, "search")]
    nan, after = live.pool.run(jobs)
    assert isinstance(nan, JobFailed)
    assert (nan.stage, nan.job.attempt, nan.lost) == ("generate", 1, ())
    assert "logits are NaN" in nan.reason
    assert isinstance(after, Transcript)
    assert after.responses == expected
