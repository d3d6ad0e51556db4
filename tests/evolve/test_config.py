from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.config import RunConfig, apply_overrides, load_config, parse_config, read_yaml
from evolve.errors import ConfigError
from evolve.genome_config import ParameterRange

unhurried = settings(deadline=None)  # the machine may be busy

MINIMAL: dict[str, Any] = {
    "genome": {"models": ["a", "b"], "merge_method": "linear"},
    "budget": {"max_fevals": 10},
    "prompts": {"files": ["p.jsonl"]},
    "fitness": {"terms": [{"metric": "ended"}]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal config with one setting laid over it."""
    data = copy.deepcopy(MINIMAL)
    node: Any = data
    *parents, leaf = path.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[leaf] = value
    return data


def refusal(data: Any, overrides: tuple[str, ...] = ()) -> str:
    """The one message, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        parse_config(data, source="run.yaml", overrides=overrides)
    message = str(caught.value)
    assert message.startswith(("run.yaml: ", "--set "))
    assert "pydantic" not in message
    return message.removeprefix("run.yaml: ")


# --- what is wrong, where, what is allowed ----------------------------------------------------------------------


def test_the_minimal_config_is_enough() -> None:
    config = parse_config(MINIMAL, source="run.yaml")
    assert config.genome.models == ("a", "b")
    assert config.search.sigma0 == 0.25


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("genom", {}, "genom: unknown key; did you mean 'genome'?"),
        ("genome.merge_metod", "x", "genome.merge_metod: unknown key; did you mean 'merge_method'?"),
        ("search.sigma", 1, "search.sigma: unknown key; did you mean 'sigma0'?"),
        ("genome.parameters.t", {"min": 0, "max": 1, "scal": "log"}, "genome.parameters.t.scal: unknown key; did you"),
        ("fitness.judge.retires", 3, "fitness.judge.retires: unknown key; did you mean"),
        ("fitness.terms", [{"metric": "ended", "wieght": 1}], "fitness.terms[0].wieght: unknown key; did you mean"),
        (
            "fitness.terms",
            [{"metric": "ended"}, {"metric": "all_of", "of": [{"metric": "ended"}, {"metric": "exact", "nam": "x"}]}],
            "fitness.terms[1].of[1].nam: unknown key; did you mean 'name'?",
        ),
        ("workers.xyzzy", 1, "workers.xyzzy: unknown key; known: 'count', "),
    ],
)
def test_a_misspelt_key_gets_its_path_and_a_suggestion(path: str, value: Any, message: str) -> None:
    assert message in refusal(changed(path, value))


def test_only_the_keys_of_the_metric_at_hand_are_suggested() -> None:
    message = refusal(changed("fitness.terms", [{"metric": "ended", "ending": "x"}]))
    assert message == "fitness.terms[0].ending: unknown key; known: 'metric', 'name', 'weight'"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("budget.max_fevals", "many", "budget.max_fevals: got 'many': expected a whole number."),
        ("budget.max_fevals", 1, "budget.max_fevals: got 1: must be at least 2."),
        ("budget.max_hours", 0, "budget.max_hours: got 0: must be above 0."),
        ("budget", 5, "budget: got 5: expected a block of settings."),
        ("budget", None, "budget: got None: expected a block of settings."),
        ("search.sigma0", 2, "search.sigma0: got 2: must be at most 1.0."),
        ("search.sigma0", "wide", "search.sigma0: got 'wide': expected a number."),
        ("search.noise", "hi", "search.noise: got 'hi': allowed are 'low' or 'high'; did you mean 'high'?"),
        ("seed", -1, "seed: got -1: must be at least 0."),
        ("root", 5, "root: got 5: expected a path."),
        ("root", None, "root: got None: expected a path."),
        ("store.url", 5, "store.url: got 5: expected text."),
        ("genome.models", "a", "genome.models: got 'a': expected a list."),
        ("genome.models", [], "genome.models: got []: a list of at least 1 is needed."),
        ("genome.models", ["a", 5], "genome.models[1]: got 5: expected text."),
        ("genome.models", ["a", ""], "genome.models[1]: got '': must not be empty."),
        ("genome.base_model", "", "genome.base_model: got '': must not be empty."),
        ("genome.smooth", "maybe", "genome.smooth: got 'maybe': expected true or false."),
        ("genome.layer_granularity", 1.5, "genome.layer_granularity: got 1.5: expected a whole number."),
        ("genome.parameters", {"weight": 10**400}, "genome.parameters.weight: got 1000"),
        ("genome.parameters", [1], "genome.parameters: got [1]: expected a block of settings."),
        ("baselines.recipes", [5], "baselines.recipes[0]: got 5: expected the path of a mergekit YAML file, or"),
        ("workers.engine", "vlm", "workers.engine: got 'vlm': allowed are 'auto', 'vllm' or 'transformers'; did you"),
        ("fitness.terms", [{"metric": "endd"}], "fitness.terms[0].metric: got 'endd'; did you mean 'ended'?"),
        ("fitness.terms", [{"weight": 1}], "fitness.terms[0].metric: missing in {'weight': 1}."),
        ("fitness.terms", [{"metric": "ends_with"}], "fitness.terms[0].endings: missing, and it has no default."),
        ("fitness.terms", [5], "fitness.terms[0]: got 5: expected a block of settings."),
        ("fitness.terms", [], "fitness.terms: got []: a list of at least 1 is needed."),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_expected(path: str, value: Any, message: str) -> None:
    found = refusal(changed(path, value))
    assert found.startswith(message)
    assert "\n" not in found


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_a_missing_block_is_named(name: str) -> None:
    data = {key: value for key, value in MINIMAL.items() if key != name}
    assert refusal(data) == f"{name}: missing, and it has no default."


@pytest.mark.parametrize("value", ["high", [0, 1], None, float("nan"), float("inf"), {}, {"min": 0}])
def test_a_wrong_parameter_gives_one_message_per_place(value: Any) -> None:
    found = refusal(changed("genome.parameters", {"weight": value}))
    places = [line.removeprefix("run.yaml: ").split(": ")[0] for line in found.splitlines()]
    assert len(set(places)) == len(places)
    assert all(place in ("genome.parameters.weight", *ends(value)) for place in places)


def ends(value: Any) -> list[str]:
    return [f"genome.parameters.weight.{end}" for end in ("min", "max") if isinstance(value, dict)]


@pytest.mark.parametrize("value", ["high", [0, 1], None])
def test_a_parameter_that_is_no_number_is_told_both_forms(value: Any) -> None:
    message = refusal(changed("genome.parameters", {"weight": value}))
    assert message == (
        f"genome.parameters.weight: got {value!r}: expected a number, true or false, or a range to search such as "
        "{min: 0, max: 1}."
    )


@pytest.mark.parametrize(
    ("given_range", "message"),
    [
        ({"min": 1, "max": 0}, "the range is upside down or empty: min 1.0 must be below max 0.0."),
        ({"min": 1, "max": 1}, "the range is upside down or empty: min 1.0 must be below max 1.0."),
        ({"min": 0, "max": float("inf")}, "the range is upside down or empty: min 0.0 must be below max inf."),
        ({"min": 0, "max": 1, "scale": "log"}, "scale log needs min above 0, got 0.0."),
        ({"min": 0, "max": 1, "init": 2}, "init 2.0 lies outside 0.0 to 1.0."),
        ({"min": 0, "max": 1, "init": float("nan")}, "init nan lies outside 0.0 to 1.0."),
    ],
)
def test_a_range_that_cannot_be_searched_says_why(given_range: Any, message: str) -> None:
    found = refusal(changed("genome.parameters", {"weight": given_range}))
    assert found == f"genome.parameters.weight: {message}"


def test_several_mistakes_are_told_together() -> None:
    data = changed("budget.max_fevals", "many") | {"sed": 1}
    lines = refusal(data).splitlines()
    assert len(lines) == 2
    assert any("budget.max_fevals" in line for line in lines)
    assert any("sed: unknown key; did you mean 'seed'?" in line for line in lines)


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(changed("budget.max_fevals", "x" * 5000))) < 250


def test_dots_in_a_message_stay_as_they_are() -> None:
    message = refusal(changed("fitness.judge", {"model": "x"}))
    assert message == "fitness: judge: no term asks it; add a term {metric: judge, rubric: ...} or drop judge."


@pytest.mark.parametrize("data", [None, [1], "text", 5])
def test_a_file_that_is_no_mapping_says_what_is_expected(data: Any) -> None:
    assert refusal(data) == f"expected a mapping with genome, budget, prompts and fitness, got {data!r}."


def test_a_key_that_is_no_text_is_refused() -> None:
    assert "a key must be text" in refusal({**MINIMAL, 1: 2})


def test_settings_that_mergekit_evolve_had_are_explained_together() -> None:
    message = refusal({**MINIMAL, "tasks": [], "limit": 3, "random_init": True})
    assert "tasks: lm-eval tasks are not run here" in message
    assert "run.yaml: limit: write prompts.search_limit instead." in message
    assert "run.yaml: random_init: write genome.parameters.weight.init instead" in message


def test_numbers_as_yaml_writes_them_are_read() -> None:
    text = "{epsilon: 1e-5, lambda: 1, weight: 0.5, rescale: yes, density: {min: 1e-2, max: 1}}"
    parameters = parse_config(changed("genome.parameters", yaml.safe_load(text)), source="x").genome.parameters
    assert parameters["epsilon"] == 1e-5
    assert parameters["lambda"] == 1.0
    assert parameters["lambda"] is not True
    assert parameters["rescale"] is True
    assert parameters["density"] == ParameterRange(min=0.01, max=1)


def test_a_config_survives_being_stored() -> None:
    data = changed("genome.parameters", {"weight": {"min": 0, "max": 1, "scale": "linear"}, "x": True, "y": 2})
    data["baselines"] = {"recipes": ["r.yaml", {"merge_method": "linear"}]}
    config = parse_config(data, source="/somewhere/run.yaml")
    stored = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse_config(stored, source="/elsewhere/config.yaml") == config


def test_every_setting_has_a_description() -> None:
    def walk(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(RunConfig)


# --- files ------------------------------------------------------------------------------------------------------


def test_an_absent_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"rnu\.yaml: no such file; did you mean run\.yaml\?"):
        load_config(tmp_path / "rnu.yaml")
    with pytest.raises(ConfigError, match=r"no such file\.$"):
        load_config(tmp_path / "nowhere" / "run.yaml")


def test_a_file_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("genome: {models: [a\nbudget: 3\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: not valid YAML: .*line 2") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"key: \x80"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml: "):
        read_yaml(path)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_an_empty_file_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match="expected a mapping with genome, budget, prompts and fitness, got None"):
        load_config(path)


def write(folder: Path, data: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_relative_paths_start_from_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "project", MINIMAL)
    monkeypatch.chdir(tmp_path)
    config = load_config("project/run.yaml")
    assert config.root == tmp_path / "project"
    assert config.prompts.files == (Path("p.jsonl"),)


@pytest.mark.parametrize("root", ["..", "../data", "/somewhere"])
def test_root_is_relative_to_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    path = write(tmp_path / "project", {**MINIMAL, "root": root})
    monkeypatch.chdir("/")
    assert load_config(path).root == (tmp_path / "project" / root).resolve()


def test_local_folders_become_absolute_and_hub_ids_stay(tmp_path: Path) -> None:
    for name in ("base", "child", "adapter", "plus+name"):
        (tmp_path / name).mkdir()
    data = copy.deepcopy(MINIMAL)
    data["genome"] = {
        "models": ["child", "org/model", "base+adapter", "org/model+adapter", "plus+name", "./child/../base"],
        "base_model": "base",
        "merge_method": "ties",
        "tokenizer_source": "base",
    }
    genome = load_config(write(tmp_path, data)).genome
    root = str(tmp_path)
    assert genome.models == (
        f"{root}/child",
        "org/model",
        f"{root}/base+{root}/adapter",
        f"org/model+{root}/adapter",
        f"{root}/plus+name",
        f"{root}/child/../base",
    )
    assert genome.base_model == f"{root}/base"
    assert genome.tokenizer_source == "base"  # mergekit's word, though a folder of that name is there


def test_a_tokenizer_source_that_is_a_folder_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    data = changed("genome.tokenizer_source", "child")
    assert load_config(write(tmp_path, data)).genome.tokenizer_source == str(tmp_path / "child")


@pytest.mark.parametrize("key", ["allow_pickles", "allow_remote_code"])
def test_what_is_allowed_is_named_as_the_models_are(tmp_path: Path, key: str) -> None:
    for name in ("old", "adapter"):
        (tmp_path / name).mkdir()
    models = ["old", "org/model", "old+adapter", "./old"]
    data = changed("genome.models", models)
    data["genome"][key] = models
    genome = load_config(write(tmp_path, data)).genome
    assert getattr(genome, key) == genome.models
    assert genome.models[0] == str(tmp_path / "old")
    assert parse_config(MINIMAL, source="run.yaml").genome.model_dump()[key] == ()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///history.db", "sqlite:///{root}/history.db"),
        ("sqlite:///deep/history.db?timeout=5", "sqlite:///{root}/deep/history.db?timeout=5"),
        ("sqlite:////data/history.db", "sqlite:////data/history.db"),
        ("postgresql://host/evolve", "postgresql://host/evolve"),
    ],
)
def test_a_relative_store_is_kept_beside_the_config(tmp_path: Path, url: str, expected: str) -> None:
    config = load_config(write(tmp_path, changed("store.url", url)))
    assert config.store.url == expected.format(root=tmp_path)


# --- --set ------------------------------------------------------------------------------------------------------

keys = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)
blocks = st.recursive(values, lambda inner: st.dictionaries(keys, inner, max_size=4), max_leaves=8)


def inside(data: Any, path: list[str]) -> Any:
    for name in path:
        data = data[name]
    return data


@unhurried
@given(st.dictionaries(keys, blocks, max_size=4), st.lists(keys, min_size=1, max_size=4), values)
def test_what_is_set_is_read_back(data: dict[str, Any], path: list[str], value: Any) -> None:
    before = copy.deepcopy(data)
    override = f"{'.'.join(path)}={yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()}"
    if leads_to_a_block(data, path):
        result = apply_overrides(data, [override])
        assert inside(result, path) == value
        assert {k: v for k, v in result.items() if k != path[0]} == {k: v for k, v in data.items() if k != path[0]}
    else:
        with pytest.raises(ConfigError, match="not a block that has"):
            apply_overrides(data, [override])
    assert data == before


def leads_to_a_block(data: Any, path: list[str]) -> bool:
    for name in path[:-1]:
        data = data.get(name)
        if data is None:
            return True
        if not isinstance(data, dict):
            return False
    return True


@unhurried
@given(keys, keys, st.lists(st.integers(), min_size=2, max_size=2))
def test_later_settings_win_and_earlier_ones_stay(one: str, two: str, numbers: list[int]) -> None:
    first, second = numbers
    result = apply_overrides({}, [f"x.{one}={first}", f"x.{two}={second}"])
    assert result["x"][two] == second
    assert result["x"][one] == (second if one == two else first)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("budget.max_fevals=40", 40),
        ("genome.merge_method=ties", "ties"),
        ("genome.parameters.weight={min: 0, max: 2}", {"min": 0, "max": 2}),
        ("prompts.files=[a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"]),
        ("prompts.system=a = b", "a = b"),
        ("search.target_fitness=", None),
    ],
)
def test_values_are_yaml(text: str, value: Any) -> None:
    path = text.partition("=")[0].split(".")
    assert inside(apply_overrides(MINIMAL, [text]), path) == value


@pytest.mark.parametrize("text", ["budget.max_fevals", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_an_override_without_path_or_value_is_refused_with_an_example(text: str) -> None:
    assert refusal(MINIMAL, (text,)) == f"--set {text}: expected dotted.path=value, such as budget.max_fevals=40."


def test_an_override_that_is_no_yaml_is_refused() -> None:
    assert refusal(MINIMAL, ("genome.models=[a",)).startswith("--set genome.models=[a: the value is not YAML: ")


def test_an_override_into_a_value_says_what_is_there() -> None:
    message = refusal(MINIMAL, ("genome.merge_method.x=1",))
    assert message == "--set genome.merge_method.x=1: merge_method is 'linear', not a block that has x."


def test_an_override_into_a_list_says_to_set_the_list() -> None:
    message = refusal(MINIMAL, ("fitness.terms.0=1",))
    assert message.startswith("--set fitness.terms.0=1: terms is a list; set terms as a whole")


def test_a_misspelt_override_is_refused_like_a_misspelt_key() -> None:
    assert refusal(MINIMAL, ("budget.max_feval=3",)) == "budget.max_feval: unknown key; did you mean 'max_fevals'?"


def test_an_override_changes_one_place_even_where_yaml_shares_a_block() -> None:
    data = yaml.safe_load("{a: &shared {min: 0, max: 1}, b: *shared}")
    assert apply_overrides(data, ["a.max=9"]) == {"a": {"min": 0, "max": 9}, "b": {"min": 0, "max": 1}}
    assert data["a"]["max"] == 1


@unhurried
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3) | values)
def test_whatever_stands_in_a_block_is_refused_or_read_but_never_crashes(value: Any) -> None:
    for path in ("genome", "genome.parameters", "fitness.terms", "baselines.recipes", "root", "store", "store.url"):
        with contextlib.suppress(ConfigError):
            parse_config(changed(path, value), source="run.yaml")
