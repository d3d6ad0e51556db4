from __future__ import annotations

from typing import Any

import pytest

from evolve.errors import ConfigError
from evolve.genome_config import GenomeConfig
from evolve.methods import Method, mergeable_methods, read_method


def method(name: str, **settings: Any) -> Method:
    defaults = {"models": ["org/one", "org/two"], "base_model": "org/base"}
    if name in ("linear", "karcher"):
        del defaults["base_model"]
    return read_method(GenomeConfig.model_validate(defaults | {"merge_method": name} | settings))


def searched(found: Method) -> dict[str, tuple[float, float]]:
    return {s.name: (s.low, s.high) for s in found.searched}


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        method(name, **settings)
    return str(caught.value)


def test_every_method_of_the_registry_but_passthrough_is_offered() -> None:
    assert "passthrough" not in mergeable_methods()
    assert {"linear", "slerp", "ties", "dare_ties", "della", "model_stock", "nearswap"} <= set(mergeable_methods())


def test_an_unknown_method_gets_a_suggestion_and_the_list() -> None:
    message = refusal("task_arithmetics")
    assert message.startswith("genome.merge_method: 'task_arithmetics' is not known; did you mean")
    assert "task_arithmetic" in message
    assert "breadcrumbs" in message


def test_passthrough_is_no_method_to_search() -> None:
    assert "genome.merge_method: 'passthrough'" in refusal("passthrough", models=["org/one"])


def test_an_unknown_parameter_gets_a_suggestion_and_its_path() -> None:
    message = refusal("ties", parameters={"densty": 0.5})
    assert message.startswith("genome.parameters.densty: ties has no such parameter; did you mean")
    assert "density" in message


@pytest.mark.parametrize("setting", [0.5, {"min": 0.1, "max": 0.9}])
def test_density_in_task_arithmetic_is_refused_since_it_has_no_effect(setting: Any) -> None:
    message = refusal("task_arithmetic", parameters={"density": setting})
    assert message.startswith("genome.parameters.density: ")
    assert "no effect" in message
    assert "ties" in message  # the remedy


def test_slerp_of_three_models_is_explained() -> None:
    message = refusal("slerp", models=["a", "b", "c"], base_model=None)
    assert message.startswith("genome.models: slerp joins exactly two models, got a, b, c")
    assert "mergekit-evolve" in message
    assert "multislerp" in message


def test_slerp_of_two_models_and_a_third_as_base_is_explained() -> None:
    assert "and base_model org/base" in refusal("slerp")


def test_slerp_of_two_models_starts_from_the_first_and_says_so() -> None:
    found = method("slerp", base_model=None)
    assert found.base_model == "org/one"
    assert searched(found) == {"t": (0, 1)}
    assert "from org/one (t = 0) to org/two (t = 1)" in found.notes[0]


@pytest.mark.parametrize("name", ["linear", "karcher"])
def test_a_base_model_given_to_a_method_without_one_is_explained(name: str) -> None:
    message = refusal(name, base_model="org/base")
    assert message.startswith(f"genome.base_model: {name} has no base; mergekit would merge org/base in")


def test_a_base_model_that_is_listed_anyway_is_taken() -> None:
    assert searched(method("linear", base_model="org/one")) == {"weight": (0, 1)}


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "model_stock"])
def test_a_missing_base_model_is_named(name: str) -> None:
    assert refusal(name, base_model=None).startswith(f"genome.base_model: missing; {name} measures")


def test_too_many_models_for_a_method_are_refused_with_their_names() -> None:
    message = refusal("nearswap")
    assert message.startswith("genome.models: nearswap: ")
    assert "org/one, org/two; base: org/base" in message


def test_a_model_listed_twice_is_refused() -> None:
    assert refusal("linear", models=["a", "a"]).startswith("genome.models: a model is listed twice")


def test_a_name_that_mergekit_cannot_read_is_refused() -> None:
    assert refusal("linear", models=["a+b+c", "d"]).startswith("genome.models: linear: ")


@pytest.mark.parametrize(("name", "has"), [("model_stock", "model_stock"), ("arcee_fusion", "arcee_fusion")])
def test_a_method_without_a_number_says_so(name: str, has: str) -> None:
    changes = {"models": ["org/one"]} if name == "arcee_fusion" else {}
    found = method(name, **changes)
    assert found.searched == ()
    assert found.nothing_to_search().startswith(f"genome: {has} has nothing to search here: it takes no number")


@pytest.mark.parametrize(("name", "parameter"), [("sce", "select_topk"), ("karcher", "tol"), ("ram", "epsilon")])
def test_a_method_without_a_default_range_says_which_number_to_search(name: str, parameter: str) -> None:
    found = method(name)
    assert found.searched == ()
    assert f"genome.parameters.{parameter}: {{min:" in found.nothing_to_search()


def test_an_integer_cannot_be_searched_and_can_be_fixed() -> None:
    message = refusal("karcher", parameters={"max_iter": {"min": 1, "max": 9}})
    assert message == "genome.parameters.max_iter: int cannot be searched; give one value."
    assert method("karcher", parameters={"max_iter": 20, "tol": {"min": 1e-6, "max": 1e-3}}).fixed == {"max_iter": 20}


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties"])
def test_mergekit_evolve_normalises_these(name: str) -> None:
    found = method(name)
    assert found.fixed["normalize"] is True
    assert found.shares


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear", "breadcrumbs"])
def test_others_keep_mergekits_default(name: str) -> None:
    found = method(name)
    assert found.fixed["normalize"] is False
    assert not found.shares


def test_normalize_goes_where_the_user_says() -> None:
    assert not method("ties", normalize=False).shares
    assert method("task_arithmetic", normalize=True).shares
    assert method("task_arithmetic", parameters={"normalize": True}).shares


def test_normalize_said_twice_must_say_the_same() -> None:
    assert method("ties", normalize=True, parameters={"normalize": True}).shares
    message = refusal("ties", normalize=False, parameters={"normalize": True})
    assert message.startswith("genome.normalize is False and genome.parameters.normalize is True")


def test_normalize_is_refused_where_the_method_has_none() -> None:
    assert refusal("slerp", models=["a"], base_model="b", normalize=True).startswith("genome.normalize: slerp")


@pytest.mark.parametrize("name", ["linear", "ties", "nuslerp", "multislerp"])
def test_normalised_weights_are_searched_as_shares_one_fewer_than_models(name: str) -> None:
    found = method(name, models=["a", "b"], base_model=None if name == "linear" else "c")
    assert found.shares
    (weight,) = (s for s in found.searched if s.name == "weight")
    assert weight.models == (0,)
    assert "shares of 1" in " ".join(found.notes)


def test_a_weight_range_on_a_normalising_method_is_taken_and_its_redundancy_noted() -> None:
    found = method("linear", parameters={"weight": {"min": 0.2, "max": 0.9}})
    assert not found.shares
    assert searched(found) == {"weight": (0.2, 0.9)}
    assert "redundant" in " ".join(found.notes)


def test_negative_weights_are_searched_from_minus_one() -> None:
    assert searched(method("task_arithmetic", allow_negative_weights=True)) == {"weight": (-1, 1.5)}
    assert searched(method("linear", allow_negative_weights=True)) == {"weight": (-1, 1)}
    assert searched(method("task_arithmetic"))["weight"][0] == 0


def test_a_single_weight_under_normalisation_is_fixed() -> None:
    found = method("ties", models=["org/one"])
    assert searched(found) == {"density": (0.05, 1.0)}
    assert found.fixed["weight"] == 1.0


def test_a_fixed_parameter_is_not_searched() -> None:
    found = method("ties", parameters={"density": 0.4, "weight": {"min": 0, "max": 2}, "lambda": 1})
    assert searched(found) == {"weight": (0, 2)}
    assert (found.fixed["density"], found.fixed["lambda"]) == (0.4, 1)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_are_known_and_noted(name: str) -> None:
    found = method(name)
    assert found.random_masks
    assert "genome.mask_seed" in " ".join(found.notes)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "breadcrumbs", "sce"])
def test_other_methods_are_not_random(name: str) -> None:
    assert not method(name).random_masks


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_keeps_density_and_epsilon_inside_the_unit_interval_by_default(name: str) -> None:
    found = method(name)
    low, high = searched(found)["density"]
    assert low - found.fixed["epsilon"] > 0
    assert high + found.fixed["epsilon"] < 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"density": {"min": 0.1, "max": 0.8}},
        {"density": {"min": 0.2, "max": 0.9}},
        {"density": {"min": 0.3, "max": 0.6}, "epsilon": {"min": 0.01, "max": 0.45}},
        {"density": 0.1},
        {"epsilon": 0.5},
    ],
)
def test_della_out_of_its_limits_shows_the_arithmetic(parameters: Any) -> None:
    message = refusal("della", parameters=parameters)
    assert message.startswith("genome.parameters.density: della needs density - epsilon above 0")
    assert "it spans" in message


def test_della_with_epsilon_searched_but_nothing_dropped_is_refused() -> None:
    message = refusal("della", parameters={"density": 1.0, "epsilon": {"min": 0.01, "max": 0.1}})
    assert message.startswith("genome.parameters.epsilon: with density 1 della keeps everything")


@pytest.mark.parametrize(
    ("name", "parameter"), [("ties", "density"), ("slerp", "t"), ("sce", "select_topk"), ("breadcrumbs", "gamma")]
)
def test_a_share_outside_the_unit_interval_is_refused(name: str, parameter: str) -> None:
    models = {"models": ["a"], "base_model": "b"} if name == "slerp" else {}
    message = refusal(name, parameters={parameter: {"min": 0.1, "max": 1.2}}, **models)
    assert message.startswith(f"genome.parameters.{parameter}: 0.1 to 1.2 leaves 0 to 1")


def test_a_gamma_that_density_leaves_no_room_for_is_noted() -> None:
    gamma = {"min": 0.01, "max": 0.1}
    assert "density + gamma exceeds 1" in " ".join(method("breadcrumbs", parameters={"gamma": gamma}).notes)
    roomy = method("breadcrumbs", parameters={"gamma": gamma, "density": {"min": 0.1, "max": 0.9}})
    assert "density + gamma" not in " ".join(roomy.notes)


def test_nearswaps_t_is_no_share() -> None:
    found = method("nearswap", models=["a"], parameters={"t": {"min": 1e-4, "max": 5, "scale": "log"}})
    assert searched(found) == {"t": (1e-4, 5)}


def test_short_names_tell_the_models_apart() -> None:
    assert method("linear", models=["a/x", "b/y"]).short_names == ("x", "y")
    assert method("linear", models=["a/x", "b/x"]).short_names == ("a/x", "b/x")
    assert method("linear", models=["/m/a/x/1", "/m/b/x/1"]).short_names == ("a/x/1", "b/x/1")
