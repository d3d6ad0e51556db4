"""Workers without a model, which take as long as a job's recipe says."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fitness.generation import PRESETS, Generation
from fitness.responses import Response
from workers.actor import Worker
from workers.engine import Engine, EngineSpec
from workers.job import Job
from workers.pool import Pool
from workers.recipe import Recipe


def make_sleeper() -> type[Worker]:
    """Within a function, so that Ray ships the classes by value: actors cannot import a test's module."""

    class SleepingEngine:
        def swap(self, recipe: Recipe) -> float:
            self.config = recipe.config
            return 0.0

        def generate(
            self, prompts: Sequence[tuple[str, list[int]]], settings: Generation, seeds: Sequence[int]
        ) -> tuple[Response, ...]:
            if Path(self.config["crash_while"]).exists():
                os._exit(1)
            time.sleep(self.config["seconds"] * len(prompts) / 16)
            asked = zip(prompts, seeds, strict=True)
            return tuple(Response(prompt_id, str(seed), 1, "stop") for (prompt_id, _), seed in asked)

        def close(self) -> None:
            pass

    class Sleeper(Worker):
        def make_engine(self, spec: EngineSpec) -> Engine:
            return SleepingEngine()

    return Sleeper


@pytest.fixture
def sleeping_pool(tmp_path: Path) -> Any:
    """``sleeping_pool(count=4, ...)``: a pool, not started, with 16 prompts; engines start on ``skeleton``."""

    def make(**settings: Any) -> Pool:
        prompts = {"search": [(f"p{i}", [1]) for i in range(16)], "validation": [("p0", [1])]}
        skeleton = tmp_path / "skeleton"
        skeleton.mkdir(exist_ok=True)
        spec = EngineSpec("transformers", skeleton, {})
        return Pool(spec, prompts, PRESETS["greedy-short"], **{"worker_class": make_sleeper()} | settings)

    return make


@pytest.fixture
def sleep_job(tmp_path: Path) -> Any:
    """``sleep_job(key, seconds)``: takes so long for its 16 answers; crashes while a file ``crash`` exists."""

    def make(key: str, seconds: float) -> Job:
        return Job(key, Recipe({"seconds": seconds, "key": key, "crash_while": str(tmp_path / "crash")}), "search")

    return make


@pytest.fixture(scope="session")
def overflowing() -> Any:
    """``overflowing(model)``: a recipe with finite weights whose activations are not."""

    def make(model: str) -> Recipe:
        scale = [{"filter": "mlp", "value": 1e20}, {"value": 1.0}]
        models = [{"model": model, "parameters": {"scale": scale}}]
        return Recipe({"merge_method": "passthrough", "models": models, "dtype": "float32", "out_dtype": "bfloat16"})

    return make
