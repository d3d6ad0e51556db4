from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from workers.engine import EngineSpec
from workers.machine import Node
from workers.memory import Footprint, footprint, memory_finding

GIB = 2**30
ON_CPU = Footprint(on_gpu=False, weights=4 * GIB, cache=GIB, merge=2 * GIB, process=GIB, parents=6 * GIB)
ON_GPU = replace(ON_CPU, on_gpu=True, cache=0)
SPEC = EngineSpec("transformers", Path("skeleton"), {})
VLLM = replace(SPEC, engine="vllm")

SIZES = st.integers(0, 2**40)
FOOTPRINTS = st.builds(Footprint, st.booleans(), SIZES, SIZES, SIZES, st.integers(1, 2**40), SIZES)


def reckoned(spec: EngineSpec, method: str = "linear", *, on_gpu: bool = False) -> Footprint:
    return footprint(spec, method=method, on_gpu=on_gpu)


def values_of(folder: str) -> list[int]:
    return [t.numel() for path in Path(folder).glob("*.safetensors") for t in load_file(path).values()]


# --- the footprint ----------------------------------------------------------------------------------------------


def test_weights_are_4_bytes_a_value_on_a_cpu_and_as_stored_on_a_gpu(family: Any, spec: EngineSpec) -> None:
    spec = replace(spec, folders=family.folders)
    total = sum(values_of(family.base))
    assert reckoned(spec).weights == total * 4
    assert reckoned(spec, on_gpu=True).weights == total * 2


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_type_that_is_named_holds_everywhere(
    llama: Any, spec: EngineSpec, dtype: Any, size: int, on_gpu: bool
) -> None:
    assert reckoned(replace(spec, dtype=dtype), on_gpu=on_gpu).weights == sum(values_of(llama.base)) * size


@pytest.mark.parametrize(("method", "copies"), [("linear", 7), ("task_arithmetic", 7), ("ties", 12), ("dare_ties", 12)])
def test_a_merge_holds_copies_of_its_largest_tensor_in_float32(
    llama: Any, spec: EngineSpec, method: str, copies: int
) -> None:
    # Of three models; methods that trim and vote hold masks too.
    largest = max(values_of(llama.base)) * 4
    assert reckoned(spec, method).merge == copies * largest
    assert reckoned(replace(spec, tensor_parallel_size=2), method).merge == 2 * copies * largest


def test_a_tied_head_that_is_stored_all_the_same_weighs_nothing(qwen: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen.base, tmp_path / "both"))
    before = reckoned(replace(SPEC, folders={"both": folder}))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert reckoned(replace(SPEC, folders={"both": folder})).weights == before.weights


def test_vllm_computes_in_16_bits_where_32_are_stored(llama: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama.base, tmp_path / "wide"))
    tensors = {name: t.float() for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    wide, total = {"wide": folder}, sum(values_of(llama.base))
    assert reckoned(replace(VLLM, folders=wide), on_gpu=True).weights == total * 2
    assert reckoned(replace(SPEC, folders=wide), on_gpu=True).weights == total * 4
    assert reckoned(replace(VLLM, folders=wide)).weights == total * 4


def test_parents_count_once_though_they_have_two_names(llama: Any, spec: EngineSpec) -> None:
    folders = {**spec.folders, "again": Path(llama.base)}
    sizes = [path.stat().st_size for folder in llama.folders.values() for path in folder.glob("*.safetensors")]
    assert reckoned(replace(spec, folders=folders)).parents == sum(sizes)


def test_only_vllm_on_a_cpu_has_its_cache_in_main_memory(spec: EngineSpec) -> None:
    vllm = replace(spec, engine="vllm", kv_cache_gib=3)
    assert reckoned(vllm).cache == 3 * GIB
    assert reckoned(vllm, on_gpu=True).cache == 0
    assert reckoned(spec).cache == 0


def test_buffers_that_loaders_ignore_weigh_nothing(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "old")
    before = reckoned(replace(SPEC, folders={"old": folder}))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(10**6)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = reckoned(replace(SPEC, folders={"old": folder}))
    assert (after.weights, after.merge) == (before.weights, before.merge)
    assert after.parents > before.parents + 10**6


@given(FOOTPRINTS)
def test_on_a_gpu_main_memory_holds_neither_weights_nor_cache(one: Footprint) -> None:
    assert one.own == one.merge + one.process + (0 if one.on_gpu else one.weights + one.cache)


# --- what was measured ------------------------------------------------------------------------------------------


@given(FOOTPRINTS, SIZES)
def test_a_peak_takes_the_place_of_the_guess_at_the_process_and_of_nothing_else(one: Footprint, peak: int) -> None:
    measured = one.measured(peak)
    assert replace(measured, process=one.process) == one
    # Mapped parents may be part of the peak; whatever else is above the reckoning is the process's.
    assert measured.own + measured.parents >= peak
    assert measured.process >= 2**29
    if measured.process > 2**29:
        assert measured.own + measured.parents == peak


# --- the finding ------------------------------------------------------------------------------------------------


def on(memory_bytes: int, *, workers: int = 2, one: Footprint = ON_CPU) -> Any:
    found = memory_finding(one, Node(4, memory_bytes=memory_bytes), workers=workers, spec=SPEC)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.check == "memory"
    return found


def test_workers_that_fill_the_machine_to_the_byte_fit_and_one_byte_less_is_too_little() -> None:
    together = 2 * ON_CPU.own
    assert "too much" not in on(together).message
    missing = on(together - 1)
    assert (missing.level, missing.where) == ("warning", "workers.count")  # what is beside the weights is rough
    assert "too much" in missing.message
    assert "Lower workers.count to 1" in missing.remedy
    assert "workers.dtype: bfloat16" in missing.remedy


def test_weights_alone_that_do_not_fit_are_an_error_to_the_byte() -> None:
    assert on(2 * ON_CPU.weights).level == "warning"
    assert on(2 * ON_CPU.weights - 1).level == "error"


def test_a_local_judge_beside_the_workers_counts() -> None:
    enough = Node(4, memory_bytes=2 * ON_CPU.own + ON_CPU.parents + GIB)
    assert memory_finding(ON_CPU, enough, workers=2, spec=SPEC, beside=GIB).level == "ok"
    found = memory_finding(ON_CPU, replace(enough, memory_bytes=2 * ON_CPU.own), workers=2, spec=SPEC, beside=GIB)
    assert found.level == "warning"
    assert "a local judge 1.0" in found.message
    assert "Lower workers.count to 1" in found.remedy
    # Where the judge alone fills the machine, no number of workers helps.
    found = memory_finding(ON_CPU, replace(enough, memory_bytes=GIB), workers=2, spec=SPEC, beside=2 * GIB)
    assert "more memory" in found.remedy


def test_parents_that_stay_in_memory_are_fine_and_one_byte_less_is_a_warning() -> None:
    enough = 2 * ON_CPU.own + ON_CPU.parents
    assert on(enough).level == "ok"
    slow = on(enough - 1)
    assert slow.level == "warning"
    assert "reads from the disk" in slow.message


def test_not_even_one_worker_takes_another_machine() -> None:
    found = on(ON_CPU.own - 1, workers=1)
    assert found.level == "warning"
    assert "more memory" in found.remedy
    assert "workers.count to" not in found.remedy


def test_memory_that_nobody_knows_is_a_note() -> None:
    found = on(0)
    assert found.level == "note"
    assert "8.0 GiB each" in found.message
    assert "weights 4.0, attention cache 1.0, a merge 2.0, libraries 1.0" in found.message
    assert "together 16.0" in found.message


@given(FOOTPRINTS, st.integers(1, 64), SIZES)
def test_the_level_follows_from_what_is_needed_and_what_there_is(one: Footprint, workers: int, memory: int) -> None:
    found = memory_finding(one, Node(1, memory_bytes=memory), workers=workers, spec=SPEC)
    together = workers * one.own
    if not memory:
        assert found.level == "note"
    elif together > memory:
        assert found.level == ("error" if not one.on_gpu and workers * one.weights > memory else "warning")
        fitting = memory // one.own
        assert (f"workers.count to {fitting}" in found.remedy) == (fitting > 0)
        assert fitting < workers
    else:
        assert found.level == ("warning" if together + one.parents > memory else "ok")


def test_weights_need_room_on_each_gpu() -> None:
    room = Node(4, 2, memory_bytes=64 * GIB, gpu_bytes=4 * GIB)
    # As large as the GPU: nothing is left for a tensor of the merge.
    full = memory_finding(ON_GPU, room, workers=1, spec=SPEC)
    assert (full.level, full.where) == ("error", "workers.tensor_parallel_size")
    assert "4.0 GiB on each of 1 GPU(s)" in full.message
    assert "workers.tensor_parallel_size" in full.remedy
    assert memory_finding(ON_GPU, replace(room, gpu_bytes=4 * GIB + 1), workers=1, spec=SPEC).level == "ok"
    halved = replace(SPEC, tensor_parallel_size=2)
    assert memory_finding(ON_GPU, room, workers=1, spec=halved).level == "ok"


@given(st.floats(0.1, 0.99), st.integers(1, 8), st.integers(1, 2**36))
def test_vllm_may_take_its_share_of_a_gpu_and_no_more(share: float, ranks: int, gpu_bytes: int) -> None:
    spec = replace(VLLM, gpu_memory_utilization=share, tensor_parallel_size=ranks)
    node = Node(4, ranks, memory_bytes=2**50, gpu_bytes=gpu_bytes)
    for weights in (math.floor(gpu_bytes * share * ranks) + ranks, math.ceil(gpu_bytes * share * ranks) - ranks):
        found = memory_finding(replace(ON_GPU, weights=max(0, weights)), node, workers=1, spec=spec)
        assert found.level == ("error" if max(0, weights) / ranks >= gpu_bytes * share else "ok")


def test_a_gpu_of_unknown_size_is_not_judged() -> None:
    node = Node(4, 1, memory_bytes=64 * GIB)
    assert memory_finding(ON_GPU, node, workers=1, spec=SPEC).level == "ok"


def test_main_memory_beside_gpus_is_judged_too() -> None:
    node = Node(4, 1, memory_bytes=ON_GPU.own - 1, gpu_bytes=80 * GIB)
    found = memory_finding(ON_GPU, node, workers=1, spec=SPEC)
    assert (found.level, found.where) == ("warning", "workers.count")
    assert "workers.dtype" not in found.remedy  # the weights are not there


def test_workers_that_share_a_gpu_have_a_part_of_it_each() -> None:
    node = Node(4, 1, memory_bytes=64 * GIB, gpu_bytes=10 * GIB)
    assert memory_finding(ON_GPU, node, workers=2, spec=SPEC, gpus=0.5).level == "ok"
    found = memory_finding(ON_GPU, node, workers=3, spec=SPEC, gpus=1 / 3)
    assert (found.level, found.where) == ("error", "workers.tensor_parallel_size")


def test_vllm_workers_that_share_a_gpu_must_not_take_more_than_all_of_it() -> None:
    node = Node(4, 1, memory_bytes=64 * GIB, gpu_bytes=99 * GIB)
    found = memory_finding(ON_GPU, node, workers=2, spec=VLLM, gpus=0.5)
    assert (found.level, found.where) == ("error", "workers.gpu_memory_utilization")
    assert "0.45 or less" in found.remedy
    modest = replace(VLLM, gpu_memory_utilization=0.45)
    assert memory_finding(ON_GPU, node, workers=2, spec=modest, gpus=0.5).level == "ok"
