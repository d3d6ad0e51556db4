from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.merge_methods.registry import registered_methods
from safetensors import safe_open

from workers.errors import CandidateFailed, ModelError
from workers.merge import Merger, mask_seed_of
from workers.recipe import Recipe, parent_recipe

METHODS = [method.spec.name for method in registered_methods()]
RANDOM = [name for name in METHODS if name.startswith(("dare", "della"))]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in RANDOM])
def test_merged_tensors_are_bitwise_those_of_mergekit(
    family: Any, method: str, tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    recipe = family.recipe(method)
    merged = dict(Merger(family.folders).tensors(recipe))
    assert same(merged, stored(mergekit_merge(recipe, tmp_path / "mergekit")))
    assert not same(merged, stored(Path(family.one)))  # a merge that changes nothing would prove nothing


@pytest.mark.parametrize("method", RANDOM)
def test_random_masks_depend_on_seed_and_tensor_only(llama: Any, method: str) -> None:
    recipe = llama.recipe(method)
    first = dict(Merger(llama.folders).tensors(recipe))
    torch.manual_seed(99)  # the global generator's state must not matter,
    reopened = Merger(llama.folders)
    next(iter(reopened.tensors(recipe)))  # nor what was merged before
    assert same(first, dict(reopened.tensors(recipe)))
    other = dict(reopened.tensors(Recipe(recipe.config, mask_seed=2)))
    assert not same(first, other)


@pytest.mark.parametrize("method", RANDOM)
def test_merging_leaves_the_global_generator_alone(llama: Any, method: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(Merger(llama.folders).tensors(llama.recipe(method)))
    assert torch.equal(torch.rand(3), expected)


def test_masks_of_equally_shaped_tensors_differ(llama: Any) -> None:
    config = dict(llama.recipe("dare_linear", density=0.5).config) | {"out_dtype": "float32"}
    merged = dict(Merger(llama.folders).tensors(Recipe(config, mask_seed=1)))
    base = {name: tensor.float() for name, tensor in stored(Path(llama.base)).items()}
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    assert not torch.equal(merged[up] == base[up], merged[gate] == base[gate])


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_keeps_the_share_that_density_says(llama: Any, density: float) -> None:
    config = dict(llama.recipe("dare_linear", weight=1.0, density=density).config) | {"out_dtype": "float32"}
    config["models"] = config["models"][:1]
    merged = dict(Merger(llama.folders).tensors(Recipe(config, mask_seed=5)))
    base, child = stored(Path(llama.base)), stored(Path(llama.one))
    kept = total = 0
    for name, tensor in merged.items():
        changed = base[name].float() != child[name].float()
        kept += int((tensor != base[name].float())[changed].sum())
        total += int(changed.sum())
    assert total > 100_000
    assert kept / total == pytest.approx(density, abs=4 * (density * (1 - density) / total) ** 0.5)


@pytest.mark.parametrize("method", RANDOM)
def test_without_dropping_random_methods_are_bitwise_mergekits(
    llama: Any, method: str, tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    recipe = llama.recipe(method, density=1.0)
    assert same(dict(Merger(llama.folders).tensors(recipe)), stored(mergekit_merge(recipe, tmp_path / "mergekit")))


def test_layer_gradients_and_filters_are_mergekits(
    llama: Any, tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    weight = [{"filter": "mlp", "value": [0.1, 0.9, 0.4]}, {"value": 0.3}]
    config = {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": llama.one, "layer_range": [start, end], "parameters": {"weight": weight}},
                    {"model": llama.two, "layer_range": [start, end], "parameters": {"weight": 0.6}},
                ]
            }
            for start, end in ((0, 2), (2, 3))
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    recipe = Recipe(config)
    assert same(dict(Merger(llama.folders).tensors(recipe)), stored(mergekit_merge(recipe, tmp_path / "mergekit")))


def test_a_parent_is_itself(family: Any) -> None:
    merged = dict(Merger(family.folders).tensors(parent_recipe(family.one, out_dtype="bfloat16")))
    assert same(merged, stored(Path(family.one)))


def test_recipes_name_models_as_the_user_did(llama: Any) -> None:
    recipe = llama.recipe("linear")
    config = dict(recipe.config)
    config["models"] = [
        entry | {"model": name} for entry, name in zip(config["models"], ("org/a+lora", "b@v"), strict=True)
    ]
    renamed = Merger({"org/a+lora": Path(llama.one), "b@v": Path(llama.two)})
    assert same(dict(renamed.tensors(Recipe(config))), dict(Merger(llama.folders).tensors(recipe)))


def test_values_that_are_not_finite_fail_the_candidate(llama: Any) -> None:
    with pytest.raises(CandidateFailed, match=r"tensor model.embed_tokens.weight.*NaN") as failure:
        list(Merger(llama.folders).tensors(llama.recipe("linear", weight=float("nan"))))
    assert (failure.value.stage, failure.value.fatal) == ("merge", False)


def test_float16_overflow_fails_the_candidate(llama: Any) -> None:
    config = dict(llama.recipe("linear", weight=1e6).config) | {"out_dtype": "float16"}
    config["parameters"] = {"normalize": False}
    with pytest.raises(CandidateFailed, match="infinity"):
        list(Merger(llama.folders).tensors(Recipe(config)))


def test_what_mergekit_refuses_fails_before_any_tensor(llama: Any) -> None:
    merger = Merger(llama.folders)
    recipe = Recipe(dict(llama.recipe("linear").config) | {"merge_method": "lineal"})
    with pytest.raises(CandidateFailed, match="lineal"):
        merger.tensors(recipe)  # not even iterated
    with pytest.raises(ModelError, match=r"mergekit refuses.*lineal"):
        merger.validate(recipe)


def test_an_unknown_model_is_named(llama: Any) -> None:
    with pytest.raises(ModelError, match=r"'stranger'.*not among the parents"):
        Merger(llama.folders).validate(parent_recipe("stranger", out_dtype="bfloat16"))


def test_mask_seeds_differ_by_tensor_and_seed() -> None:
    seeds = {mask_seed_of(seed, name) for seed in range(20) for name in ("a", "b", "model.norm.weight")}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
