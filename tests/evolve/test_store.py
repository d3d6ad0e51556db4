from __future__ import annotations

import json
import random
import resource
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from evolve.errors import RunStopped, StoreError
from evolve.evaluation import Candidate, Evaluation, Summary
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.outcome import Failed
from evolve.store import Store, default_url
from fitness.aggregate import Fitness
from workers.job import Lost, Share
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
    return Evaluation(
        candidate,
        result,
        {"merge": 0.5, "generate": 1.5},
        f"{kind}-{number:04d}.jsonl",
        (Share(0, 4, 1.7e9 + number, 1.5), Share(1, 2, 1.7e9, 0.5)),
        (Lost(1, "worker", "the process died"),),
    )


def values(genome: Genome, evaluation: Evaluation) -> Mapping[str, float]:
    genotype = evaluation.candidate.genotype
    return {} if genotype is None else genome.values(genotype)


def filled(genome: Genome, folder: Path) -> Store:
    store = Store(default_url(folder), NAME, create=True)
    for number, (kind, value) in enumerate(
        [("parent", 0.3), ("search", 0.5), ("search", None), ("search", 0.9), ("baseline", 0.6), ("search", 0.7)]
    ):
        add(store, genome, row(genome, number, value, kind=kind))
    return store


def add(store: Store, genome: Genome, evaluation: Evaluation) -> Evaluation:
    return store.add(evaluation, genome.coordinates, values(genome, evaluation))


def fill(store: Store, genome: Genome) -> None:
    for number in range(100, 200):
        add(store, genome, row(genome, number, 0.1))


@pytest.fixture
def impatient(tmp_path: Path) -> str:
    """A database that is waited for only briefly."""
    return f"{default_url(tmp_path)}?timeout=0.01"


def test_rows_are_the_same_after_reopening(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    reopened = Store(default_url(tmp_path), NAME)
    rows = list(store.rows())
    assert list(reopened.rows()) == rows
    assert len(rows) == len(store) == len(reopened) == 6
    assert [r.candidate.kind for r in rows] == ["search"] * 4 + ["parent", "baseline"]
    assert [r.number for r in reopened.rows("search")] == [0, 1, 2, 3]
    assert [r.number for r in reopened.rows("parent", "baseline")] == [0, 1]
    for evaluation in rows:
        assert reopened.get(evaluation.candidate.key) == evaluation
        assert evaluation.candidate.key in reopened
    assert "search-0099" not in reopened
    assert reopened.get("search-0099") is None


def test_rows_hold_what_was_added(genome: Genome, tmp_path: Path) -> None:
    store = Store(default_url(tmp_path), NAME, create=True)
    evaluation = row(genome, 3, 0.5)
    recorded = add(store, genome, evaluation)
    assert recorded == replace(evaluation, number=0)
    for again in (store, Store(default_url(tmp_path), NAME)):
        (read,) = again.rows()
        assert read == recorded
        assert read.candidate.recipe.hash == evaluation.candidate.recipe.hash


def test_a_mask_seed_is_kept(genome: Genome, tmp_path: Path) -> None:
    evaluation = row(genome, 0, 0.5)
    seeded = replace(evaluation, candidate=replace(evaluation.candidate, recipe=Recipe({"merge_method": "dare"}, 7)))
    store = Store(default_url(tmp_path), NAME, create=True)
    assert add(store, genome, seeded) == store.get(seeded.candidate.key) == replace(seeded, number=0)


def test_rows_are_read_one_at_a_time(genome: Genome, tmp_path: Path) -> None:
    rows = filled(genome, tmp_path).rows("search")
    assert isinstance(rows, Iterator)
    assert next(rows).candidate.key == "search-0001"


def test_summaries_are_the_rows_in_short(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    for kinds in [(), ("search",), ("parent", "baseline"), ("finalist",)]:
        expected = [
            Summary(c.key, c.kind, c.split, c.generation, c.index, c.recipe.hash, row.value, row.seconds, row.shares)
            for row in store.rows(*kinds)
            for c in [row.candidate]
        ]
        assert store.summaries(*kinds) == Store(default_url(tmp_path), NAME).summaries(*kinds) == expected


def test_many_rows_are_read_in_any_order_and_between_additions(genome: Genome, tmp_path: Path) -> None:
    store = Store(default_url(tmp_path), NAME, create=True)
    added: list[Evaluation] = []
    chance = random.Random(0)
    for number in range(300):
        kind = "search" if chance.random() < 0.9 else "baseline"
        added.append(store.add(row(genome, number, number / 300, kind=kind), genome.coordinates, {}))
        some = chance.choice(added)
        assert store.get(some.candidate.key) == some
    reopened = Store(default_url(tmp_path), NAME)
    chance.shuffle(added)
    assert [reopened.get(one.candidate.key) for one in added] == added


def test_numbers_go_on_after_reopening(genome: Genome, tmp_path: Path) -> None:
    filled(genome, tmp_path)
    assert add(Store(default_url(tmp_path), NAME), genome, row(genome, 9, 0.1)).number == 4


def test_a_key_is_recorded_once(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    for again in (store, Store(default_url(tmp_path), NAME)):
        with pytest.raises(ValueError, match="search-0001 is recorded already"):
            again.add(row(genome, 1, 0.4), genome.coordinates, {})
    assert len(Store(default_url(tmp_path), NAME)) == 6


def test_a_row_that_two_drivers_recorded_counts_once(genome: Genome, tmp_path: Path) -> None:
    one, two = filled(genome, tmp_path), Store(default_url(tmp_path), NAME)
    first = add(one, genome, row(genome, 8, 0.25))
    add(two, genome, row(genome, 8, 0.75))
    reopened = Store(default_url(tmp_path), NAME)
    assert reopened.get("search-0008") == first
    assert len(reopened) == 7
    assert add(reopened, genome, row(genome, 9, 0.5)) == list(reopened.rows("search"))[-1]


def test_plain_optuna_reads_the_study(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    study = optuna.load_study(storage=default_url(tmp_path), study_name=NAME)
    assert [t.state for t in study.trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    best = max(store.rows("search"), key=lambda r: r.value if r.value is not None else -1.0)
    attributes = study.best_trial.user_attrs
    assert study.best_value == best.value == 0.9
    assert attributes["label"] == best.candidate.label
    assert attributes["generation"] == best.candidate.generation
    assert attributes["evaluation"]["recipe_hash"] == best.candidate.recipe.hash
    assert json.loads(attributes["recipe"]) == best.candidate.recipe.config
    others = optuna.load_study(storage=default_url(tmp_path), study_name=f"{NAME}/others")
    assert [t.user_attrs["label"] for t in others.trials] == ["parent 0", "baseline 4"]
    assert [t.params for t in others.trials] == [{}, {}]


def test_trials_of_others_are_ignored(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    study = optuna.load_study(storage=default_url(tmp_path), study_name=NAME)
    study.enqueue_trial({"weight of persona, layers 0-0, mlp": 0.5})
    study.add_trial(optuna.create_trial(value=2.0, user_attrs={"evaluation": "mine"}))
    study.add_trial(optuna.create_trial(value=2.0, user_attrs={"evaluation": {"key": "search-0001"}}))
    reopened = Store(default_url(tmp_path), NAME)
    assert list(reopened.rows()) == list(store.rows())
    assert add(reopened, genome, row(genome, 9, 0.1)).number == 4
    assert [r.number for r in Store(default_url(tmp_path), NAME).rows("search")] == [0, 1, 2, 3, 4]


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
    assert len(Store(default_url(tmp_path), NAME)) == 6


def test_a_name_that_is_taken_in_part_is_refused_and_left_as_it_was(genome: Genome, tmp_path: Path) -> None:
    url = default_url(tmp_path)
    filled(genome, tmp_path)
    optuna.delete_study(study_name=NAME, storage=url)  # as somebody does it in the dashboard
    for _ in range(2):
        with pytest.raises(StoreError, match=r"has a study named run-1/others already; choose another --name"):
            Store(url, NAME, create=True)
    assert optuna.get_all_study_names(url) == [f"{NAME}/others"]


def test_two_runs_share_a_storage(genome: Genome, tmp_path: Path) -> None:
    first = filled(genome, tmp_path)
    second = Store(default_url(tmp_path), "run-2", create=True)
    assert list(second.rows()) == []
    add(second, genome, row(genome, 1, 0.1))
    add(first, genome, row(genome, 8, 0.2))
    assert [len(Store(default_url(tmp_path), name)) for name in (NAME, "run-2")] == [7, 1]


def test_a_deleted_run_leaves_its_name_free(genome: Genome, tmp_path: Path) -> None:
    kept = filled(genome, tmp_path)
    gone = Store(default_url(tmp_path), "run-2", create=True)
    add(gone, genome, row(genome, 1, 0.1))
    gone.delete()
    with pytest.raises(StoreError, match="has no study named run-2"):
        Store(default_url(tmp_path), "run-2")
    with pytest.raises(RunStopped, match=r"search-0002 cannot be recorded in sqlite:"):
        add(gone, genome, row(genome, 2, 0.1))
    assert len(Store(default_url(tmp_path), "run-2", create=True)) == 0
    assert list(Store(default_url(tmp_path), NAME).rows()) == list(kept.rows())


@pytest.mark.parametrize("url", ["", "not a url", "./history.log", "redis://host/0", "oracle://host/db"])
def test_what_is_no_supported_database_is_refused_with_what_is(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(url, NAME)
    assert str(caught.value).startswith("store.url: ")
    assert url in str(caught.value)
    for supported in ("sqlite:///", "postgresql+psycopg://", "mysql+pymysql://"):
        assert supported in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all/history.db", "postgresql+nosuchdriver://host/db", "sqlite:///x?timeout=soon"]
)
@pytest.mark.parametrize("create", [True, False])
def test_a_storage_that_cannot_be_opened_is_one_line(url: str, create: bool) -> None:
    with pytest.raises(StoreError, match=r"^store\.url: .* cannot be opened: [^\n]+$") as caught:
        Store(url, NAME, create=create)
    assert url in str(caught.value)


def test_a_missing_driver_is_named_with_what_brings_it() -> None:
    with pytest.raises(StoreError, match=r"driver mysqldb is not installed; use mysql\+pymysql.*pip install 'PyMySQL'"):
        Store("mysql://user@127.0.0.1/db", NAME)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:s3cret@127.0.0.1:1/db",
        "postgresql+psycopg2://user:s3cret@127.0.0.1:1/db",
        "postgresql+psycopg://127.0.0.1:1/db?user=user&password=s3cret",
        "postgresql+psycopg://user:s3cret@127.0.0.1:port/db",
        "redis://user:s3cret@host/0",
        "nothing//user:s3cret@host/0",
        "user:s3cret@host",
    ],
)
def test_no_message_tells_a_password(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as caught:
        Store(url, NAME)
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("these are no tables\n" * 100)
    with pytest.raises(StoreError, match=r"^store\.url: .* cannot be opened: file is not a database$"):
        Store(default_url(tmp_path), NAME)


def test_the_default_url_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_url(Path("run")) == f"sqlite:///{tmp_path}/run/history.db"


@pytest.mark.parametrize("folder", ["a b", "50%", "a%20b", "what?", "a#b", "{SCHEMA_VERSION}", "{x", "語", "a=b&c"])
def test_a_folder_may_be_named_anything(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    Store(default_url(tmp_path / folder), NAME, create=True)
    assert (tmp_path / folder / "history.db").stat().st_size > 0
    assert len(Store(default_url(tmp_path / folder), NAME)) == 0


def test_a_locked_database_stops_the_run_and_nothing_is_lost(genome: Genome, tmp_path: Path, impatient: str) -> None:
    filled(genome, tmp_path)
    store = Store(impatient, NAME)
    holder = sqlite3.connect(tmp_path / "history.db")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunStopped, match=r"^search-0009 cannot be recorded in sqlite:.*: database is locked\. "):
        add(store, genome, row(genome, 9, 0.1))
    assert "search-0009" not in store
    holder.close()
    assert add(store, genome, row(genome, 9, 0.1)).number == 4
    assert len(Store(default_url(tmp_path), NAME)) == 7


def test_a_full_disk_stops_the_run_and_nothing_is_torn(genome: Genome, tmp_path: Path) -> None:
    store = filled(genome, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "history.db").stat().st_size, limits[1]))
    try:
        with pytest.raises(RunStopped, match=r"recorded in sqlite:.*: (disk I/O error|database or disk is full)"):
            fill(store, genome)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recorded = list(store.rows())
    assert list(Store(default_url(tmp_path), NAME).rows()) == recorded
    add(store, genome, row(genome, 200, 0.1))
    assert len(Store(default_url(tmp_path), NAME)) == len(recorded) + 1
