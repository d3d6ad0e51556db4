from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition
from mergekit.merge_methods.base import BasePolicy, ParameterScope
from safetensors import safe_open

from evolve.config import load_config
from evolve.errors import ConfigError
from evolve.genome import Coordinate, Genome
from evolve.genome_config import GenomeConfig
from evolve.methods import mergeable_methods
from workers.merge import Merger
from workers.models import Architecture, read_architecture
from workers.recipe import Recipe

unhurried = settings(deadline=None)  # the machine may be busy

# A range for every number in mergekit's registry; a new one there fails these tests until it has one here.
RANGES: dict[str, dict[str, Any]] = {
    "weight": {"min": 0.1, "max": 1.2},
    "density": {"min": 0.2, "max": 0.8},
    "epsilon": {"min": 0.01, "max": 0.15},
    "t": {"min": 0.05, "max": 0.95},
    "lambda": {"min": 0.5, "max": 1.5},
    "gamma": {"min": 0.01, "max": 0.15},
    "eps": {"min": 1e-9, "max": 1e-6, "scale": "log"},
    "tol": {"min": 1e-6, "max": 1e-3, "scale": "log"},
    "r": {"min": 0.05, "max": 0.5},
    "alpha": {"min": 0.1, "max": 0.6},
    "select_topk": {"min": 0.2, "max": 0.9},
}
WITHOUT_NUMBERS = ("arcee_fusion", "model_stock")
SEARCHABLE = [name for name in mergeable_methods() if name not in WITHOUT_NUMBERS]
LAYOUTS: dict[str, dict[str, Any]] = {
    "one set": {},
    "groups": {"layer_granularity": 1},
    "filters": {"filters": ["self_attn", "mlp"]},
    "groups and filters": {"layer_granularity": 1, "filters": ["embed_tokens", "lm_head", "self_attn"]},
    "smooth": {"layer_granularity": 1, "smooth": True},
    "smooth and filters": {"layer_granularity": 1, "smooth": True, "filters": ["embed_tokens", "self_attn"]},
}


def block(method: str, models: list[str], base: str, **settings: Any) -> dict[str, Any]:
    """A genome block for a method, with as many of the models as it takes."""
    contract = merge_methods.get(method).spec.contract
    wants_base = contract.base not in (BasePolicy.IGNORED, BasePolicy.FORBIDDEN)
    if contract.max_inputs is not None:
        models = models[: contract.max_inputs - wants_base]
    found: dict[str, Any] = {"models": models, "merge_method": method}
    return found | ({"base_model": base} if wants_base else {}) | settings


def every_range(method: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every number of a method searched."""
    unused = ("density",) if method == "task_arithmetic" else ()
    ranges = RANGES | ({"t": {"min": 1e-3, "max": 0.1, "scale": "log"}} if method == "nearswap" else {})
    parameters = merge_methods.get(method).spec.parameters
    return {p.name: ranges[p.name] for p in parameters if p.value_type is float and p.name not in (*unused, *without)}


def of_family(family: Any, method: str, **settings: Any) -> Genome:
    config = GenomeConfig.model_validate(block(method, [family.one, family.two], family.base, **settings))
    return Genome(config, read_architecture(Path(family.base)), out_dtype="bfloat16")


def stack(layers: int) -> Architecture:
    """The tensors of an imagined model."""
    names = ("input_layernorm.weight", "self_attn.q_proj.weight", "mlp.up_proj.weight")
    return Architecture(
        num_layers=layers,
        pre=("model.embed_tokens.weight",),
        layers=tuple(tuple(f"model.layers.{i}.{name}" for name in names) for i in range(layers)),
        post=("model.norm.weight", "lm_head.weight"),
    )


def imagined(method: str, layers: int = 4, models: tuple[str, ...] = ("a", "b", "c"), **settings: Any) -> Genome:
    config = GenomeConfig.model_validate(block(method, list(models), "base", **settings))
    return Genome(config, stack(layers), out_dtype="bfloat16")


def interior(genome: Genome, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.95, genome.dimensions)


def merged(merger: Merger, recipe: Recipe) -> dict[str, torch.Tensor]:
    return dict(merger.tensors(Recipe({**recipe.config, "out_dtype": "float32"}, recipe.mask_seed)))


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


# --- decoding gives what mergekit accepts -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", SEARCHABLE)
def test_mergekit_accepts_what_is_decoded(llama: Any, method: str, layout: str) -> None:
    merger = Merger(llama.folders)
    for parameters in (every_range(method), every_range(method, without=("weight",))):
        if not parameters:
            continue
        genome = of_family(llama, method, parameters=parameters, **LAYOUTS[layout])
        for genotype in (interior(genome, 0), np.zeros(genome.dimensions), np.ones(genome.dimensions)):
            recipe = genome.decode(genotype)
            MergeConfiguration.model_validate(yaml.safe_load(recipe.yaml()))
            merger.validate(recipe)


@pytest.mark.parametrize("method", SEARCHABLE)
def test_what_is_decoded_merges_into_finite_tensors(llama: Any, method: str) -> None:
    genome = of_family(llama, method, parameters=every_range(method), **LAYOUTS["groups and filters"])
    tensors = merged(Merger(llama.folders), genome.decode(interior(genome, 1)))
    assert len(tensors) > 20
    with safe_open(next(iter(sorted(Path(llama.one).glob("*.safetensors")))), framework="pt") as shard:
        name = next(iter(shard.keys()))
        assert not torch.equal(tensors[name], shard.get_tensor(name).float())


@pytest.mark.parametrize("method", WITHOUT_NUMBERS)
def test_a_method_without_a_number_is_refused(llama: Any, method: str) -> None:
    with pytest.raises(ConfigError, match=f"genome: {method} has nothing to search here: it takes no number"):
        of_family(llama, method)


def test_integers_and_switches_are_fixed_in_a_form_that_mergekit_accepts(llama: Any) -> None:
    parameters = {"max_iter": 20, "tol": RANGES["tol"]}
    genome = of_family(llama, "karcher", parameters=parameters)
    Merger(llama.folders).validate(genome.decode(genome.x0))
    genome = of_family(llama, "ties", parameters={"int8_mask": True, "rescale": False, "lambda": 1})
    Merger(llama.folders).validate(genome.decode(genome.x0))


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_mergekit_yaml_writes_the_model_that_was_decoded(
    llama: Any, method: str, tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    genome = of_family(llama, method, **LAYOUTS["smooth and filters" if method == "ties" else "groups"])
    recipe = genome.decode(interior(genome, 2))
    folder = mergekit_merge(recipe, tmp_path / "mergekit")
    written: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            written |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    assert different(dict(Merger(llama.folders).tensors(recipe)), written) == []


# --- coordinates ------------------------------------------------------------------------------------------------


def test_a_single_slerp_t_is_one_coordinate(llama: Any) -> None:
    genome = of_family(llama, "slerp")
    assert genome.dimensions == 1
    assert genome.decode([0.25]).config["parameters"] == {"t": 0.25}


def test_every_group_and_filter_has_coordinates_of_its_own() -> None:
    genome = imagined("ties", layer_granularity=2, filters=["self_attn", "mlp"])
    # groups x (filters + rest) x (two shares of three models + three densities)
    assert genome.dimensions == 2 * 3 * (2 + 3)
    assert len({c.name for c in genome.coordinates}) == genome.dimensions


def test_embeddings_have_coordinates_in_the_first_group_and_the_head_in_the_last() -> None:
    genome = imagined("task_arithmetic", layer_granularity=1, filters=["embed_tokens", "lm_head", "norm"])
    places = {(c.group, c.filter) for c in genome.coordinates}
    # norm and the rest are in every layer; embeddings and head once each
    assert places == {(0, 0), (3, 1), *((g, f) for g in range(4) for f in (2, 3))}


def test_smooth_embeddings_and_head_have_coordinates_at_the_first_point() -> None:
    genome = imagined("task_arithmetic", layer_granularity=1, smooth=True, filters=["embed_tokens", "lm_head"])
    assert {c.group for c in genome.coordinates if c.filter == 0} == {0}
    assert {c.group for c in genome.coordinates if c.filter == 1} == {0}
    assert {c.group for c in genome.coordinates if c.filter == 2} == {0, 1, 2, 3}


DEAD_FREE = [
    ("linear", "groups and filters", ()),
    ("linear", "smooth and filters", ()),
    ("task_arithmetic", "groups and filters", ("weight",)),
    ("task_arithmetic", "smooth and filters", ()),
    ("ties", "groups", ("weight", "lambda")),
    ("ties", "filters", ("weight",)),
    ("slerp", "groups and filters", ()),
    ("slerp", "smooth and filters", ()),
    ("nuslerp", "filters", ("weight",)),
    ("dare_ties", "smooth", ("weight", "lambda")),
    ("della", "one set", ("lambda",)),
    ("breadcrumbs", "one set", ("lambda",)),
    ("sce", "smooth", ()),
    ("ramplus_tl", "one set", ("epsilon",)),
    ("nearswap", "groups", ()),
]


@pytest.mark.parametrize(("method", "layout", "without"), DEAD_FREE)
def test_changing_any_coordinate_changes_a_tensor(llama: Any, method: str, layout: str, without: Any) -> None:
    parameters = every_range(method, without=without)
    genome = of_family(llama, method, parameters=parameters, **LAYOUTS[layout])
    merger = Merger(llama.folders)
    start = np.full(genome.dimensions, 0.4)
    before = merged(merger, genome.decode(start))
    for index, coordinate in enumerate(genome.coordinates):
        moved = start.copy()
        moved[index] = 0.8
        assert different(before, merged(merger, genome.decode(moved))), f"{coordinate.name} is dead"


def test_a_coordinate_changes_only_the_tensors_that_its_name_says(llama: Any) -> None:
    genome = of_family(llama, "task_arithmetic", layer_granularity=1, filters=["self_attn"])
    merger = Merger(llama.folders)
    before = merged(merger, genome.decode(genome.x0))
    for index, coordinate in enumerate(genome.coordinates):
        moved = genome.x0
        moved[index] = 0.9
        changed = different(before, merged(merger, genome.decode(moved)))
        if coordinate.filter == 0:
            assert changed
            assert all(f"layers.{coordinate.group}.self_attn" in name for name in changed)
        else:
            assert not any("self_attn" in name for name in changed)
            layers = {name.split(".")[2] for name in changed if ".layers." in name}
            assert layers == {str(coordinate.group)}


def test_names_are_those_that_people_use() -> None:
    genome = imagined("ties", models=("org/persona", "org/facts"), layer_granularity=2, filters=["mlp"])
    names = [c.name for c in genome.coordinates]
    assert "weight of persona, layers 0-1, mlp" in names
    assert "density of facts, layers 2-3, rest" in names
    assert "point 1" in imagined("slerp", models=("a", "b"), layer_granularity=2, smooth=True).coordinates[1].name


def test_layers_that_granularity_does_not_divide_are_refused_with_the_divisors() -> None:
    with pytest.raises(ConfigError, match=r"genome.layer_granularity: 3 does not divide the 4 layers.*1, 2, 4, or 0"):
        imagined("linear", layer_granularity=3)


@pytest.mark.parametrize("filters", [["mpl"], ["mlp", "mlp"], ["proj", "self_attn"]])
def test_a_filter_that_matches_nothing_left_is_refused(filters: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"genome.filters: {filters[-1]} matches no tensor.*model\.layers\.0"):
        imagined("linear", filters=filters)


# --- values -----------------------------------------------------------------------------------------------------

IMAGINED = {
    "shares": lambda: imagined("linear", models=("a", "b", "c", "d"), layer_granularity=2, filters=["mlp"]),
    "ties": lambda: imagined("ties", layer_granularity=1),
    "logs": lambda: imagined(
        "task_arithmetic",
        parameters={
            "weight": {"min": -0.3, "max": 1.7},
            "lambda": {"min": 1e-3, "max": 3, "scale": "log"},
        },
        smooth=True,
        layer_granularity=1,
    ),
    "della": lambda: imagined("della", parameters={"epsilon": {"min": 0.01, "max": 0.1}}),
    "slerp": lambda: imagined("slerp", models=("a", "b")),
}
GENOMES = {name: build() for name, build in IMAGINED.items()}
genomes = st.sampled_from(sorted(GENOMES)).map(GENOMES.__getitem__)
units = st.floats(0, 1)
insides = st.floats(0.001, 0.999)


@st.composite
def places(draw: st.DrawFn, numbers: st.SearchStrategy[float] = units) -> tuple[Genome, list[float]]:
    genome = draw(genomes)
    return genome, draw(st.lists(numbers, min_size=genome.dimensions, max_size=genome.dimensions))


@unhurried
@given(places())
def test_decoded_values_stay_inside_their_range(place: tuple[Genome, list[float]]) -> None:
    genome, genotype = place
    values = genome.values(genotype)
    assert list(values) == [c.name for c in genome.coordinates]
    for coordinate in genome.coordinates:
        assert coordinate.low <= values[coordinate.name] <= coordinate.high


@unhurried
@given(
    st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-6),
    st.floats(1e-3, 1e3),
    st.floats(0, 1),
    st.sampled_from(["linear", "log"]),
)
def test_no_range_is_left_by_rounding(low: float, width: float, x: float, scale: Any) -> None:
    low = abs(low) + 1e-6 if scale == "log" else low
    coordinate = Coordinate("c", "c", None, 0, 0, low, low + width, low, scale)
    assert coordinate.low <= coordinate.decode(x) <= coordinate.high
    assert coordinate.decode(0.0) == pytest.approx(low)
    assert coordinate.decode(1.0) == pytest.approx(low + width)


@unhurried
@given(st.floats(1e-3, 10), st.floats(0.1, 100), units, st.sampled_from(["linear", "log"]))
def test_encoding_undoes_decoding(low: float, width: float, x: float, scale: Any) -> None:
    coordinate = Coordinate("c", "c", None, 0, 0, low, low + width, low, scale)
    assert coordinate.encode(coordinate.decode(x)) == pytest.approx(x, abs=1e-9)


def test_log_scale_searches_the_exponent() -> None:
    coordinate = Coordinate("c", "c", None, 0, 0, 1e-4, 1.0, 0.01, "log")
    assert [coordinate.decode(x) for x in (0, 0.25, 0.5, 1)] == pytest.approx([1e-4, 1e-3, 1e-2, 1])


@unhurried
@given(places(insides), st.data())
def test_decoding_is_injective(place: tuple[Genome, list[float]], data: st.DataObject) -> None:
    genome, genotype = place
    other = list(genotype)
    index = data.draw(st.integers(0, genome.dimensions - 1))
    other[index] = data.draw(insides.filter(lambda x: abs(x - genotype[index]) > 1e-6))
    assert genome.decode(genotype).hash != genome.decode(other).hash
    assert genome.decode(genotype).hash == genome.decode(list(genotype)).hash


@unhurried
@given(places())
def test_what_is_decoded_is_plain_finite_data(place: tuple[Genome, list[float]]) -> None:
    genome, genotype = place
    recipe = genome.decode(genotype)
    assert Recipe.from_dict(recipe.to_dict()).hash == recipe.hash
    assert yaml.safe_load(recipe.yaml()) == recipe.config


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers_in(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers_in(inner)]
    return [value] if isinstance(value, float) else []


def share_cells(recipe: Recipe) -> list[list[float]]:
    """Per layer group and filter, the weights of all models."""
    config = recipe.config
    columns = [
        [numbers_in(source["parameters"]["weight"]) for source in group if "weight" in source.get("parameters", {})]
        for group in ([s["sources"] for s in config["slices"]] if "slices" in config else [config["models"]])
    ]
    return [list(cell) for column in columns for cell in zip(*column, strict=True)]


@unhurried
@given(st.sampled_from(["shares", "ties"]), st.data())
def test_shares_sum_to_one_in_every_group_and_filter(name: str, data: st.DataObject) -> None:
    genome = GENOMES[name]
    size = genome.dimensions
    cells = share_cells(genome.decode(data.draw(st.lists(units, min_size=size, max_size=size))))
    assert len(cells) == 4
    for cell in cells:
        assert sum(cell) == pytest.approx(1, abs=1e-12)
        assert all(weight >= 0 for weight in cell)


@pytest.mark.parametrize("models", [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("method", ["linear", "ties", "multislerp"])
def test_shares_start_out_equal(method: str, models: tuple[str, ...]) -> None:
    genome = imagined(method, models=models, layer_granularity=2)
    for recipe in (genome.decode(genome.x0), genome.equal_weights()):
        for cell in share_cells(recipe):
            assert cell == pytest.approx([1 / len(models)] * len(models))


def test_every_share_can_be_reached() -> None:
    genome = imagined("linear")
    for wanted in ([0.2, 0.3, 0.5], [0.7, 0.1, 0.2], [0.0, 1.0, 0.0]):
        genotype = [wanted[0], wanted[1] / (1 - wanted[0])]
        assert share_cells(genome.decode(genotype))[0] == pytest.approx(wanted)


def test_the_search_starts_at_the_init_values() -> None:
    genome = imagined(
        "task_arithmetic",
        parameters={
            "weight": {"min": -1, "max": 2, "init": 0.7},
            "lambda": {"min": 0.01, "max": 10, "init": 0.5, "scale": "log"},
        },
        layer_granularity=2,
    )
    values = genome.values(genome.x0)
    assert [values[c.name] for c in genome.coordinates] == pytest.approx([c.init for c in genome.coordinates])
    assert {round(value, 9) for value in values.values()} == {0.7, 0.5}


def test_without_init_weights_start_equal_and_others_in_the_middle() -> None:
    genome = imagined("breadcrumbs", parameters={"gamma": {"min": 0.001, "max": 0.1, "scale": "log"}})
    starts = {c.parameter: c.init for c in genome.coordinates}
    assert starts == pytest.approx({"weight": 1 / 3, "density": 0.525, "gamma": 0.01})


def test_a_range_of_weights_away_from_equal_starts_in_its_middle() -> None:
    genome = imagined("task_arithmetic", parameters={"weight": {"min": 0.5, "max": 0.9}})
    assert genome.values(genome.x0)["weight of a"] == pytest.approx(0.7)


def test_equal_weights_are_one_over_k_and_leave_the_rest_at_its_start() -> None:
    genome = imagined("breadcrumbs", parameters={"weight": {"min": 0, "max": 2, "init": 1.5}})
    for entry in genome.equal_weights().config["models"]:
        assert entry["parameters"] == pytest.approx({"weight": 1 / 3, "density": 0.525})


def test_equal_weights_of_slerp_are_half_way_and_nearswaps_t_is_left_alone() -> None:
    slerp = imagined("slerp", models=("a", "b"), parameters={"t": {"min": 0, "max": 1, "init": 0.2}})
    assert slerp.equal_weights().config["parameters"] == {"t": 0.5}
    nearswap = imagined("nearswap", models=("a",), parameters={"t": {"min": 0.001, "max": 0.1, "init": 0.01}})
    assert nearswap.equal_weights().config["parameters"]["t"] == pytest.approx(0.01)


def test_negative_weights_reach_the_recipe() -> None:
    genome = imagined("task_arithmetic", allow_negative_weights=True)
    weights = [entry["parameters"]["weight"] for entry in genome.decode([0, 0.4, 1]).config["models"]]
    assert weights == pytest.approx([-1, 0, 1.5])


@pytest.mark.parametrize("method", SEARCHABLE)
def test_only_random_methods_have_a_mask_seed(method: str) -> None:
    genome = imagined(method, models=("a", "b"), parameters=every_range(method), mask_seed=7)
    seed = genome.decode(genome.x0).mask_seed
    assert seed == (7 if method.startswith(("dare", "della")) else None)


def test_the_mask_seed_is_part_of_the_identity() -> None:
    one, two = (imagined("dare_ties", mask_seed=seed) for seed in (1, 2))
    assert one.decode(one.x0).hash != two.decode(two.x0).hash


def test_a_genotype_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 coordinates, got 3"):
        imagined("linear").decode([0.1, 0.2, 0.3])


def test_dtypes_and_tokenizer_source_reach_the_recipe() -> None:
    genome = imagined("linear", dtype="bfloat16", tokenizer_source="union")
    config = genome.decode(genome.x0).config
    assert (config["dtype"], config["out_dtype"], config["tokenizer_source"]) == ("bfloat16", "bfloat16", "union")


# --- mergekit-evolve --------------------------------------------------------------------------------------------

THEIR_PARAMETERS = {
    "linear": ["weight"],
    "task_arithmetic": ["weight"],
    "ties": ["weight", "density"],
    "dare_ties": ["weight", "density"],
}
UNIT = {"min": 0.0, "max": 1.0}


@pytest.mark.parametrize(
    ("method", "layout", "extra"),
    [
        ("linear", "groups", {}),
        ("linear", "groups and filters", {"normalize": False}),
        ("task_arithmetic", "groups and filters", {}),
        ("task_arithmetic", "smooth and filters", {"normalize": True}),
        ("task_arithmetic", "smooth", {}),
        ("ties", "one set", {}),
        ("ties", "groups and filters", {}),
        ("ties", "smooth", {"normalize": False}),
        ("dare_ties", "filters", {}),
        ("dare_ties", "groups", {"normalize": False}),
    ],
)
def test_equal_values_merge_bitwise_as_in_mergekits_own_genome(
    llama: Any, method: str, layout: str, extra: dict[str, Any]
) -> None:
    """Also shows that the coordinates left out are dead: theirs have random values."""
    names = THEIR_PARAMETERS[method]
    shared = block(method, [llama.one, llama.two], llama.base, **LAYOUTS[layout], **extra)
    theirs = ModelGenome(ModelGenomeDefinition.model_validate(shared))
    ours = of_family(llama, method, parameters=dict.fromkeys(names, UNIT), **LAYOUTS[layout], **extra)

    shape = tuple(theirs.initial_genotype().shape)
    values = torch.tensor(np.random.default_rng(3).uniform(0.2, 0.9, shape))
    genotype = []
    for c in ours.coordinates:
        assert c.model is not None
        genotype.append(float(values[c.group, c.model, c.filter, names.index(c.parameter)]))
    their_config = theirs.genotype_merge_config(values).model_dump(mode="json", exclude_none=True)
    their_config |= {"dtype": "float32", "out_dtype": "float32"}  # theirs computes in bfloat16

    recipe = ours.decode(genotype)
    merger = Merger(llama.folders)
    assert different(merged(merger, recipe), dict(merger.tensors(Recipe(their_config, recipe.mask_seed)))) == []


@pytest.mark.parametrize("method", sorted(THEIR_PARAMETERS))
def test_negative_weights_mean_what_they_mean_in_mergekits_own_genome(llama: Any, method: str) -> None:
    names = THEIR_PARAMETERS[method]
    shared = block(method, [llama.one, llama.two], llama.base, allow_negative_weights=True, normalize=False)
    theirs = ModelGenome(ModelGenomeDefinition.model_validate(shared))
    ranges = {"weight": {"min": -1, "max": 1}, "density": UNIT}
    ours = of_family(
        llama,
        method,
        parameters={name: ranges[name] for name in names},
        allow_negative_weights=True,
        normalize=False,
    )
    values = torch.tensor([[[[-0.5, 0.5]], [[0.75, 0.25]]]], dtype=torch.float64)[..., : len(names)]
    genotype = [c.encode(float(values[0, c.model or 0, 0, names.index(c.parameter)])) for c in ours.coordinates]
    their_config = theirs.genotype_merge_config(values).model_dump(mode="json", exclude_none=True)
    their_config |= {"dtype": "float32", "out_dtype": "float32"}
    recipe = ours.decode(genotype)
    merger = Merger(llama.folders)
    assert different(merged(merger, recipe), dict(merger.tensors(Recipe(their_config, recipe.mask_seed)))) == []


THEIR_FILES = {
    "ties": """
genome:
  models:
    - {one}
    - {two}
  merge_method: ties
  base_model: {base}
  layer_granularity: 1 # sane default
  allow_negative_weights: false
  filters:
    - self_attn
    - mlp
tasks:
  - name: spartqa_train
    weight: 1.0
    metric: acc,none
limit: 100
""",
    "slerp": """
genome:
  models:
    - {one}
    - {two}
  merge_method: slerp
  layer_granularity: 3
tasks:
  - name: arc_challenge_train
num_fewshot: 4
shuffle: true
random_init: true
""",
    "dare_ties": """
genome:
  models:
    - {one}
    - {two}
  merge_method: dare_ties
  base_model: {base}
  normalize: false
  smooth: true
  layer_granularity: 1
  tokenizer_source: base
tasks:
  - some_task
apply_chat_template: true
fewshot_as_multiturn: true
""",
}
OURS = """
budget: {max_fevals: 20}
prompts: {files: [prompts.jsonl]}
fitness: {terms: [{metric: ended}]}
"""
NUMBERS = {"ties": 3 * (1 + 2) * 3, "slerp": 1, "dare_ties": 3 * (2 + 2)}


@pytest.mark.parametrize("name", THEIR_FILES)
def test_a_mergekit_evolve_file_is_told_what_to_write_instead(llama: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evolve.yaml"
    path.write_text(THEIR_FILES[name].format(one=llama.one, two=llama.two, base=llama.base))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    for key in yaml.safe_load(path.read_text()).keys() - {"genome"}:
        assert f"{path}: {key}: " in message
    assert "lm-eval tasks are not run here" in message
    assert "metric: contains" in message
    assert "The genome block is taken as it is" in message


@pytest.mark.parametrize("name", THEIR_FILES)
def test_the_genome_block_of_a_mergekit_evolve_file_is_taken_as_it_is(llama: Any, tmp_path: Path, name: str) -> None:
    text = THEIR_FILES[name].format(one=llama.one, two=llama.two, base=llama.base)
    path = tmp_path / "evolve.yaml"
    path.write_text(text[: text.index("tasks:")] + OURS)
    genome = Genome(load_config(path).genome, read_architecture(Path(llama.base)), out_dtype="bfloat16")
    # ties: groups x (a share + two densities) x (two filters + rest); dare_ties: points x (weights + densities)
    assert genome.dimensions == NUMBERS[name]
    recipe = genome.decode(interior(genome, 0))
    merger = Merger(llama.folders)
    merger.validate(recipe)
    assert all(math.isfinite(float(t.float().sum())) for t in merged(merger, recipe).values())


def test_scopes_in_the_registry_are_those_that_the_genome_knows() -> None:
    scopes = {p.scope for name in mergeable_methods() for p in merge_methods.get(name).spec.parameters}
    assert scopes <= {ParameterScope.SHARED, ParameterScope.INPUT, ParameterScope.NON_BASE}
