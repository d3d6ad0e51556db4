from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fitness.generation import PRESETS, Generation
from workers.engine import EngineSpec, WorkersConfig, check_generation, make_spec, start_engine
from workers.errors import CandidateFailed, EngineSetupError
from workers.models import Parent
from workers.recipe import Recipe, parent_recipe
from workers.skeleton import build_skeleton, tokenise
from workers.transformers_engine import TransformersEngine

GREEDY = replace(PRESETS["greedy-short"], max_new_tokens=24)
SAMPLING = replace(GREEDY, temperature=0.9, top_k=50, top_p=0.95)
Prompts = list[tuple[str, list[int]]]


def zeros(prompts: Prompts) -> list[int]:
    return [0] * len(prompts)


def start(family: Any, folder: Path) -> TransformersEngine:
    skeleton = build_skeleton(family.recipe("linear"), family.parents, folder, chat_template=None)
    engine = start_engine(EngineSpec("transformers", skeleton, family.folders, max_model_len=256))
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture(scope="module")
def skeleton(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "skeleton"
    return build_skeleton(llama.recipe("linear"), llama.parents, folder, chat_template=None)


@pytest.fixture(scope="module")
def engine(llama: Any, skeleton: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(EngineSpec("transformers", skeleton, llama.folders, max_model_len=256))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(skeleton: Path, conversations: Any) -> Prompts:
    return [(f"p{i}", ids) for i, ids in enumerate(tokenise(skeleton, conversations))]


def reference(folder: Path, ids: list[int], settings: Generation) -> tuple[str, int, str]:
    """Text, tokens and finish of one prompt on its own, as ``from_pretrained`` and ``generate`` give them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=1,
        pad_token_id=0,
    )
    output = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()
    finish = "stop" if 1 in output else "length"
    output = output[: output.index(1) + 1] if 1 in output else output
    return tokenizer.decode(output, skip_special_tokens=True), len(output), finish


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_swapped_model_answers_as_mergekits_folder_does(
    family: Any, tmp_path: Path, prompts: Prompts, num_beams: int, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    settings = replace(GREEDY, num_beams=num_beams)
    engine = start(family, tmp_path / "skeleton")
    answers = []
    for method in ("linear", "ties"):
        recipe = family.recipe(method)
        engine.swap(recipe)
        responses = engine.generate(prompts, settings, zeros(prompts))
        folder = mergekit_merge(recipe, tmp_path / method)
        expected = [reference(folder, ids, settings) for _, ids in prompts]
        assert [(r.text, r.tokens, r.finish) for r in responses] == expected
        assert [r.prompt_id for r in responses] == [prompt_id for prompt_id, _ in prompts]
        answers.append([r.text for r in responses])
    assert answers[0] != answers[1]


def test_answers_do_not_depend_on_the_recipe_before(engine: TransformersEngine, llama: Any, prompts: Prompts) -> None:
    first, other = llama.recipe("linear", weight=0.3), llama.recipe("linear", weight=0.7)
    engine.swap(first)
    expected = engine.generate(prompts, GREEDY, zeros(prompts))
    engine.swap(other)
    assert engine.generate(prompts, GREEDY, zeros(prompts)) != expected
    engine.swap(first)
    assert engine.generate(prompts, GREEDY, zeros(prompts)) == expected


def test_an_answer_ends_at_end_of_text_or_is_marked_as_cut(
    engine: TransformersEngine, llama: Any, prompts: Prompts
) -> None:
    engine.swap(parent_recipe(llama.one, out_dtype="bfloat16"))
    # Random models seldom end by themselves: sampled at a high temperature some do within 200 tokens.
    responses = engine.generate(
        prompts * 4, replace(GREEDY, max_new_tokens=200, temperature=3.0), range(4 * len(prompts))
    )
    assert {r.finish for r in responses} == {"stop", "length"}
    for response in responses:
        assert (response.tokens == 200) or response.finish == "stop"
        assert "<|end|>" not in response.text


def test_a_stop_string_ends_the_answer_before_it(engine: TransformersEngine, llama: Any, prompts: Prompts) -> None:
    engine.swap(parent_recipe(llama.one, out_dtype="bfloat16"))
    (free,) = engine.generate(prompts[:1], GREEDY, [0])
    stop = free.text[8:10]
    responses = engine.generate(prompts, replace(GREEDY, stop=(stop,)), zeros(prompts))
    assert responses[0].text == free.text[: free.text.index(stop)]
    assert responses[0].finish == "stop"
    assert responses[0].tokens < free.tokens


def test_sampling_depends_on_the_seed_and_not_on_the_batch(
    engine: TransformersEngine, llama: Any, prompts: Prompts
) -> None:
    engine.swap(parent_recipe(llama.one, out_dtype="bfloat16"))
    seeds = range(5, 5 + len(prompts))
    responses = engine.generate(prompts, SAMPLING, seeds)
    assert engine.generate(prompts, SAMPLING, seeds) == responses
    assert engine.generate(prompts, SAMPLING, range(6, 6 + len(prompts))) != responses
    assert engine.generate(prompts[2:4], SAMPLING, seeds[2:4]) == responses[2:4]


def test_sampling_follows_the_models_distribution(engine: TransformersEngine, llama: Any, skeleton: Path) -> None:
    engine.swap(parent_recipe(llama.one, out_dtype="bfloat16"))
    ids = [3, 300, 1, 4]
    model = AutoModelForCausalLM.from_pretrained(llama.one, dtype=torch.float32)
    with torch.no_grad():
        expected = (model(torch.tensor([ids])).logits[0, -1] / 1.5).softmax(-1)
    likeliest = int(expected.argmax())
    text = AutoTokenizer.from_pretrained(skeleton).decode([likeliest])
    one = replace(GREEDY, max_new_tokens=1, temperature=1.5)
    drawn = engine.generate([(str(i), ids) for i in range(2000)], one, range(2000))
    share = sum(r.text == text for r in drawn) / len(drawn)
    p = float(expected[likeliest])
    assert 0.01 < p < 0.9
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(drawn)) ** 0.5)


def test_a_recipe_that_fails_half_way_leaves_no_model_behind(
    engine: TransformersEngine, llama: Any, prompts: Prompts
) -> None:
    with pytest.raises(CandidateFailed) as failure:
        engine.swap(llama.recipe("linear", weight=float("nan")))
    assert not failure.value.fatal
    with pytest.raises(CandidateFailed, match="no merge is loaded"):
        engine.generate(prompts, GREEDY, zeros(prompts))
    engine.swap(llama.recipe("linear"))
    assert engine.generate(prompts, GREEDY, zeros(prompts))


@pytest.mark.parametrize(
    "settings", [GREEDY, SAMPLING, replace(GREEDY, num_beams=2)], ids=["greedy", "sampling", "beams"]
)
def test_a_model_that_gives_nan_is_refused_and_the_next_one_answers(
    engine: TransformersEngine, llama: Any, prompts: Prompts, settings: Generation, overflowing: Any
) -> None:
    engine.swap(overflowing(llama.one))
    with pytest.raises(CandidateFailed, match="logits are NaN") as failure:
        engine.generate(prompts, settings, zeros(prompts))
    assert (failure.value.stage, failure.value.fatal) == ("generate", False)
    engine.swap(parent_recipe(llama.one, out_dtype="bfloat16"))
    assert len(engine.generate(prompts, settings, zeros(prompts))) == len(prompts)


def test_models_with_another_vocabulary_are_merged_into_one(
    llama: Any, make_model: Callable[..., Path], tmp_path: Path, conversations: Any
) -> None:
    folders = {"plain": Path(llama.one), "wordy": make_model(tmp_path / "wordy", tokens=["<extra>"])}
    parents = {name: Parent(name, folder, lora=False) for name, folder in folders.items()}
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in folders]
    recipe = Recipe(
        {"merge_method": "linear", "models": models, "base_model": "plain", "tokenizer_source": "union"}
        | {"dtype": "float32", "out_dtype": "bfloat16"}
    )
    skeleton = build_skeleton(recipe, parents, tmp_path / "skeleton", chat_template=None)
    engine = TransformersEngine(EngineSpec("transformers", skeleton, folders, max_model_len=256))
    prompts = [(str(i), ids) for i, ids in enumerate(tokenise(skeleton, conversations))]
    for each in (recipe, parent_recipe("plain", out_dtype="bfloat16", tokenizer_source="union")):
        engine.swap(each)
        assert len(engine.generate(prompts, GREEDY, zeros(prompts))) == len(prompts)


def test_the_spec_takes_what_the_prompts_need(skeleton: Path) -> None:
    spec = make_spec(
        WorkersConfig(engine="transformers"),
        skeleton=skeleton,
        folders={},
        longest_prompt_tokens=40,
        generation=GREEDY,
    )
    assert spec.max_model_len == 64


@pytest.mark.parametrize(
    ("changes", "longest", "message"),
    [
        ({"max_model_len": 50}, 40, r"max_model_len is 50.*need 64.*Raise it to 64"),
        ({}, 250, r"exceed the model's 256 positions"),
        ({"tensor_parallel_size": 2}, 10, r"tensor_parallel_size is 2.*one device"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    skeleton: Path, changes: dict[str, Any], longest: int, message: str
) -> None:
    config = WorkersConfig.model_validate({"engine": "transformers"} | changes)
    with pytest.raises(EngineSetupError, match=message):
        make_spec(config, skeleton=skeleton, folders={}, longest_prompt_tokens=longest, generation=GREEDY)


def test_vllm_refuses_what_its_beam_search_would_ignore() -> None:
    beams = replace(GREEDY, num_beams=2, stop=("x",))
    with pytest.raises(EngineSetupError, match=r"no stop strings.*transformers"):
        check_generation("vllm", beams)
    check_generation("transformers", beams)
    with pytest.raises(EngineSetupError, match="without sampling"):
        check_generation("transformers", replace(beams, temperature=0.5))
