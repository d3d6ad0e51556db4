from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from evolve.errors import StoreError
from evolve.evaluation import Candidate, Evaluation
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.outcome import Failed
from evolve.store import Store, default_url
from fitness.aggregate import Fitness
from workers.models import Architecture
from workers.recipe import Recipe

NAME = "run-1"


@pytest.fixture(scope="module")
def genome() -> Genome:
    names = tuple(
        (f"model.layers.{i}.self_attn.q_proj.weight", f"model.layers.{i}.mlp.up_proj.weight") for i in range(2)
    )
    config = GenomeConfig.model_validate(
        {
            "models": ["org/persona", "org/facts"],
            "base_model": "org/base",
            "merge_method": "ties",
            "normalize": False,
            "layer_granularity": 1,
            "filters": ["mlp"],
            "parameters": {"lambda": {"min": 1e-3, "max": 10, "scale": "log"}, "weight": {"min": -0.3, "max": 1.7}},
        }
    )
    return Genome(config, Architecture(2, ("embed",), names, ("head",)), out_dtype="bfloat16")


def row(
    genome: Genome,
    number: int,
    value: float | None,
    *,
    kind: Any = "search",
    genotype: tuple[float, ...] | None = None,
) -> Evaluation:
    genotype = genotype or (0.1 + number / 100,) * genome.dimensions
    result = Failed("merge", "NaN in 語\nline two") if value is None else Fitness(value, 0.1, 4, 4, {"ended": 1.0})
    searching = kind == "search"
    candidate = Candidate(
        key=f"{kind}-{number:04d}",
        kind=kind,
        label=f"{kind} {number}",
        recipe=genome.decode(genotype) if searching else Recipe({"merge_method": "passthrough"}),
        split="search",
        generation=number // 4 if searching else None,
        index=number % 4 if searching else None,
        genotype=genotype if searching else None,
    )
    return Evaluation(candidate, result, {"merge": 0.5, "generate": 1.5}, f"{kind}-{number:04d}.jsonl")


def values(genome: Genome, evaluation: Evaluation) -> Mapping[str, float]:
    genotype = evaluation.candidate.genotype
    return {} if genotype is None else genome.values(genotype)


def filled(genome: Genome, folder: Path) -> Store:
    store = Store(default_url(folder), NAME, create=True)
    for number, (kind, value) in enumerate(
        [("parent", 0.3), ("search", 0.5), ("search", None), ("search", 0.9), ("baseline", 0.6), ("search", 0.7)]
    ):
        evaluation = row(genome, number, value, kind=kind)
        store.add(evaluation, genome.coordinates, values(genome, evaluation))
    return store


def test_rows_are_the_same_after_reopening(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    reopened = Store(default_url(tmp_path), NAME)
    assert reopened.rows() == store.rows()
    assert len(store.rows()) == 6
    assert [r.number for r in reopened.rows("search")] == [0, 1, 2, 3]
    assert [r.number for r in reopened.rows("parent", "baseline")] == [0, 1]
    for evaluation in store.rows():
        assert reopened.get(evaluation.candidate.key) == evaluation


def test_rows_hold_what_was_added(genome: Genome, tmp_path: Path) -> None:
    store = Store(default_url(tmp_path), NAME, create=True)
    evaluation = row(genome, 3, 0.5)
    recorded = store.add(evaluation, genome.coordinates, values(genome, evaluation))
    assert recorded == replace(evaluation, number=0)
    (read,) = Store(default_url(tmp_path), NAME).rows()
    assert read == recorded
    assert read.candidate.recipe.hash == evaluation.candidate.recipe.hash


def test_numbers_go_on_after_reopening(genome: Genome, tmp_path: Path) -> None:
    filled(genome, tmp_path)
    reopened = Store(default_url(tmp_path), NAME)
    evaluation = row(genome, 9, 0.1)
    assert reopened.add(evaluation, genome.coordinates, values(genome, evaluation)).number == 4


def test_a_key_is_recorded_once(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    for again in (store, Store(default_url(tmp_path), NAME)):
        with pytest.raises(ValueError, match="search-0001 is recorded already"):
            again.add(row(genome, 1, 0.4), genome.coordinates, {})
    assert len(Store(default_url(tmp_path), NAME).rows()) == 6


def test_plain_optuna_reads_the_study(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    study = optuna.load_study(storage=default_url(tmp_path), study_name=NAME)
    assert [t.state for t in study.trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    best = max(store.rows("search"), key=lambda r: r.value if r.value is not None else -1.0)
    assert study.best_value == best.value == 0.9
    assert study.best_trial.user_attrs["recipe_hash"] == best.candidate.recipe.hash
    assert study.best_trial.user_attrs["generation"] == best.candidate.generation
    others = optuna.load_study(storage=default_url(tmp_path), study_name=f"{NAME}/others")
    assert [t.user_attrs["kind"] for t in others.trials] == ["parent", "baseline"]
    assert [t.params for t in others.trials] == [{}, {}]


def test_parameters_are_mergekits_in_its_units(genome: Genome, tmp_path: Path) -> None:
    filled(genome, tmp_path)
    best = optuna.load_study(storage=default_url(tmp_path), study_name=NAME).best_trial
    assert best.params == genome.values((0.13,) * genome.dimensions)
    assert best.params["weight of persona, layers 0-0, mlp"] == pytest.approx(-0.3 + 0.13 * 2)
    assert best.distributions["lambda, layers 1-1, rest"].log
    assert best.distributions["density of facts, layers 1-1, mlp"].high == 1.0


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_decoded_values_are_always_inside_optunas_distributions(genome: Genome, data: st.DataObject) -> None:
    store = Store("sqlite://", NAME, create=True)  # in memory
    size = genome.dimensions
    edges = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1 - 2**-53, 5e-324])
    genotype = tuple(data.draw(st.lists(edges, min_size=size, max_size=size)))
    evaluation = row(genome, 0, 0.5, genotype=genotype)
    assert store.add(evaluation, genome.coordinates, genome.values(genotype)).candidate.genotype == genotype


def test_facts_are_attached_to_the_study(tmp_path: Path) -> None:
    Store(default_url(tmp_path), NAME, create=True).describe({"config": {"seed": 3}, "versions": {"cma": "4"}})
    study = optuna.load_study(storage=default_url(tmp_path), study_name=NAME)
    assert study.user_attrs == {"config": {"seed": 3}, "versions": {"cma": "4"}}
    assert study.direction.name == "MAXIMIZE"


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    Store(default_url(tmp_path), NAME, create=True)
    with pytest.raises(StoreError, match=r"store\.url: sqlite:.* has no study named run-2\.$"):
        Store(default_url(tmp_path), "run-2")


def test_a_study_that_is_there_already_is_not_overwritten(genome: Genome, tmp_path: Path) -> None:
    filled(genome, tmp_path)
    with pytest.raises(StoreError, match=r"has a study named run-1 already; choose another --name"):
        Store(default_url(tmp_path), NAME, create=True)
    assert len(Store(default_url(tmp_path), NAME).rows()) == 6


def test_two_runs_share_a_storage(genome: Genome, tmp_path: Path) -> None:
    filled(genome, tmp_path)
    assert Store(default_url(tmp_path), "run-2", create=True).rows() == []


@pytest.mark.parametrize(
    "url",
    [
        "not a url",
        "sqlite:////nowhere/at/all/history.db",
        "nosuchdatabase://host/db",
        "postgresql+nosuchdriver://host/db",
        "",
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_a_storage_that_cannot_be_opened_is_one_line(url: str, create: bool) -> None:
    with pytest.raises(StoreError) as caught:
        Store(url, NAME, create=create)
    message = str(caught.value)
    assert message.startswith(f"store.url: {url} cannot be opened: ")
    assert "\n" not in message
    assert len(message) > len(f"store.url: {url} cannot be opened: ")


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("these are no tables\n" * 100)
    with pytest.raises(StoreError, match=r"^store\.url: .* cannot be opened: [^\n]+$"):
        Store(default_url(tmp_path), NAME)


def test_the_default_url_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_url(Path("run")) == f"sqlite:///{tmp_path}/run/history.db"
