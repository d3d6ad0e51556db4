from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fitness.generation import PRESETS
from workers.actor import REPEAT_STRIDE
from workers.engine import EngineSpec
from workers.errors import EngineSetupError
from workers.job import Job, JobFailed, Transcript
from workers.pool import Pool
from workers.transformers_engine import TransformersEngine

GREEDY = replace(PRESETS["greedy-short"], max_new_tokens=16)


def one_job(llama: Any) -> Job:
    return Job("job", llama.recipe("linear"), "search")


def test_a_job_that_takes_too_long_fails_after_its_attempts(spec: EngineSpec, pool_prompts: Any, llama: Any) -> None:
    slow = {"search": pool_prompts["search"] * 4000, "validation": pool_prompts["validation"]}
    settings = replace(GREEDY, max_new_tokens=120)
    with Pool(spec, slow, settings, count=1, max_attempts=1, evaluation_timeout_seconds=4) as pool:
        job = one_job(llama)
        failed, done = list(pool.run([job, replace(job, key="quick", split="validation")]))
        assert isinstance(failed, JobFailed)
        assert failed.stage == "worker"
        assert "longer than 4 s (workers.evaluation_timeout_seconds)" in failed.reason
        assert isinstance(done, Transcript)


def test_an_engine_that_does_not_start_is_one_message(spec: EngineSpec, pool_prompts: Any, tmp_path: Path) -> None:
    broken = tmp_path / "skeleton"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(EngineSetupError, match="transformers engine did not start"):
        Pool(replace(spec, skeleton=broken), pool_prompts, GREEDY, count=1).start()


def test_more_gpus_than_there_are_is_one_message(spec: EngineSpec, pool_prompts: Any) -> None:
    with pytest.raises(EngineSetupError, match=r"2 workers with 64 GPUs each need 128, and Ray sees"):
        Pool(spec, pool_prompts, GREEDY, count=2, gpus_per_worker=64).start()


def test_close_leaves_no_process(spec: EngineSpec, pool_prompts: Any, llama: Any) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Pool(spec, pool_prompts, GREEDY, count=1) as pool:
        list(pool.run([one_job(llama)]))
        started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        assert started
    _, alive = psutil.wait_procs(started, timeout=15)
    assert not alive


def test_a_candidate_in_pieces_has_the_answers_of_a_whole_one(spec: EngineSpec, pool_prompts: Any, llama: Any) -> None:
    sampling = replace(GREEDY, temperature=0.9)
    job = Job("job", llama.recipe("linear"), "search", repeats=2, seed=7)
    engine = TransformersEngine(spec)
    engine.swap(job.recipe)
    seeds = [7 + REPEAT_STRIDE * repeat + i for repeat in range(2) for i in range(5)]
    expected = engine.generate(pool_prompts["search"] * 2, sampling, seeds)
    assert expected[:5] != expected[5:]
    with Pool(spec, pool_prompts, sampling, count=2, cpus_per_worker=1, split_prompts=2) as splitting:
        (result,) = splitting.run([job])
    assert isinstance(result, Transcript)
    assert result.responses == expected
    assert len(result.shares) > 1
    assert sum(share.answers for share in result.shares) == 10
