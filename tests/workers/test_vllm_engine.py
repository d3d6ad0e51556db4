"""The acceptance of the swap: a live vLLM engine answers as a fresh one started on the folder that mergekit writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mergekit.scripts.run_yaml import main as mergekit_yaml

from fitness.generation import PRESETS
from fitness.responses import Response
from workers.engine import EngineSpec
from workers.export import export_model
from workers.job import Job, JobFailed, Transcript
from workers.merge import Merger
from workers.pool import Pool
from workers.recipe import Recipe, parent_recipe
from workers.skeleton import build_skeleton, tokenise

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


@dataclass(frozen=True)
class Live:
    """A pool with one live vLLM engine, and what it was built from."""

    pool: Pool
    family: Any
    skeleton: Path
    prompts: list[tuple[str, list[int]]]

    def answer(self, *recipes: Recipe) -> list[tuple[Response, ...]]:
        jobs = [Job(str(i), recipe, "search") for i, recipe in enumerate(recipes)]
        results = {int(result.job.key): result for result in self.pool.run(jobs)}
        transcripts = [results[i] for i in range(len(recipes))]
        assert all(isinstance(t, Transcript) for t in transcripts), transcripts
        return [t.responses for t in transcripts if isinstance(t, Transcript)]


def start(family: Any, folder: Path, conversations: Any, settings: Any = GREEDY, **changes: Any) -> Live:
    skeleton = build_skeleton(family.recipe("linear"), family.parents, folder, chat_template=None)
    prompts = [(f"p{i}", ids) for i, ids in enumerate(tokenise(skeleton, conversations))]
    spec = EngineSpec("vllm", skeleton, family.folders, max_model_len=256, **changes)
    pool = Pool(spec, {"search": prompts, "validation": prompts[:1]}, settings, count=1)
    pool.start()
    return Live(pool, family, skeleton, prompts)


@pytest.fixture(scope="module", params=["llama", "qwen"])
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, conversations: Any
) -> Iterator[Live]:
    family = request.getfixturevalue(request.param)
    live = start(family, tmp_path_factory.mktemp(request.param) / "skeleton", conversations)
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


def test_swapped_answers_are_those_of_fresh_engines(live: Live, tmp_path: Path) -> None:
    recipes = [live.family.recipe(method, weight=0.4) for method in METHODS]
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


def test_answers_do_not_depend_on_the_recipe_before(live: Live) -> None:
    first, other = live.family.recipe("linear", weight=0.3), live.family.recipe("linear", weight=0.7)
    a, b, again = live.answer(first, other, first)
    assert a == again
    assert a != b


def test_a_merge_that_fails_half_way_costs_no_engine(live: Live) -> None:
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


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 2},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.95},
        {"stop": ("の",), "repetition_penalty": 1.2},
    ],
    ids=["beams", "sampling", "stop"],
)
def test_every_preset_runs_and_is_reproducible(
    llama: Any, tmp_path: Path, conversations: Any, changes: dict[str, Any]
) -> None:
    live = start(llama, tmp_path / "skeleton", conversations, replace(GREEDY, **changes))
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
            jobs = [Job(str(i), recipe, "search", repeat=i) for i in range(2)]
            a, b = live.pool.run(jobs)
            assert isinstance(a, Transcript)
            assert isinstance(b, Transcript)
            assert a.responses != b.responses
    finally:
        live.pool.close()


def test_two_ranks_merge_for_themselves_and_answer_alike(qwen: Any, tmp_path: Path, conversations: Any) -> None:
    live = start(qwen, tmp_path / "skeleton", conversations, tensor_parallel_size=2)
    try:
        recipes = [qwen.recipe("linear", weight=0.4), qwen.recipe("ties")]
        answers = live.answer(*recipes)
    finally:
        live.pool.close()
    single = start(qwen, tmp_path / "single", conversations)
    try:
        assert answers == single.answer(*recipes)
    finally:
        single.pool.close()
