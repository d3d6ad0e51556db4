from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitness.errors import PromptError
from fitness.prompts import Message, PromptsConfig, load_prompts

TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip()))
LINES = st.fixed_dictionaries(
    {"split": st.sampled_from(["search", "validation"])},
    optional={
        "reference": TEXTS | st.lists(TEXTS, min_size=1, max_size=3),
        "category": st.text(max_size=10),
    },
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def write(folder: Path, lines: list[dict[str, Any]], name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def load(folder: Path, *lines: dict[str, Any], **config: Any) -> Any:
    write(folder, list(lines))
    return load_prompts(PromptsConfig(files=(Path("prompts.jsonl"),), **config), root=folder)


def both(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines, and one more for each split, so that neither is empty."""
    return [
        *lines,
        {"prompt": "filler one", "split": "search"},
        {"prompt": "filler two", "split": "validation"},
    ]


def many(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{number}", "prompt": f"question {number}"} for number in range(count)]


def test_a_prompt_is_one_user_message(tmp_path: Path) -> None:
    first = load(
        tmp_path, *both({"id": "a", "prompt": "空は？", "reference": "青", "category": "sky", "split": "search"})
    )[0]
    assert first.id == "a"
    assert first.messages == (Message("user", "空は？"),)
    assert (first.reference, first.references, first.split, first.category) == ("青", ("青",), "search", "sky")


def test_several_references_are_kept_in_order(tmp_path: Path) -> None:
    first = load(tmp_path, *both({"prompt": "q", "reference": ["a", "b"], "split": "search"}))[0]
    assert first.references == ("a", "b")
    assert first.reference == "a"


def test_the_system_prompt_goes_before_conversations_without_one(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "q"}], "split": "search"}
    prompts = load(tmp_path, *both(own), system="yours")
    assert prompts[0].messages[0] == Message("system", "mine")
    assert prompts[1].messages == (Message("system", "yours"), Message("user", "filler one"))


def test_yaml_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("- prompt: one\n  split: search\n- {prompt: two, split: validation}\n")
    prompts = load_prompts(PromptsConfig(files=(Path("p.yaml"),)), root=tmp_path)
    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two"]


def test_line_separators_inside_a_json_string_do_not_split_the_line(tmp_path: Path) -> None:
    first = load(tmp_path, *both({"prompt": "a\u2028b\x85c", "split": "search"}))[0]
    assert first.messages[0].content == "a\u2028b\x85c"


def test_files_are_joined_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "one", "split": "search"}], "a.jsonl")
    write(tmp_path, [{"prompt": "two", "split": "validation"}], "b.jsonl")
    config = PromptsConfig(files=(Path("b.jsonl"), tmp_path / "a.jsonl"))
    assert [prompt.messages[0].content for prompt in load_prompts(config, root=tmp_path)] == ["two", "one"]


def test_adding_prompts_moves_no_other_prompt(tmp_path: Path) -> None:
    few = {prompt.id: prompt.split for prompt in load(tmp_path, *many(50))}
    more = {prompt.id: prompt.split for prompt in load(tmp_path, *many(200))}
    assert all(more[key] == split for key, split in few.items())


def test_adding_a_reference_changes_no_id(tmp_path: Path) -> None:
    plain = load(tmp_path, *both({"prompt": "q", "split": "search"}))[0]
    referenced = load(tmp_path, *both({"prompt": "q", "reference": "r", "split": "search"}))[0]
    assert plain.id == referenced.id


def test_the_share_and_the_seed_decide_the_split(tmp_path: Path) -> None:
    quarter = load(tmp_path, *many(400), validation_share=0.25)
    assert 60 <= sum(prompt.split == "validation" for prompt in quarter) <= 140
    other = load(tmp_path, *many(400), validation_share=0.25, seed=1)
    assert [prompt.split for prompt in quarter] != [prompt.split for prompt in other]


def test_explicit_splits_win_over_the_share(tmp_path: Path) -> None:
    prompts = load(tmp_path, *both({"prompt": "q", "split": "search"}), validation_share=1.0)
    assert prompts[0].split == "search"


def test_limits_draw_from_the_whole_file_and_keep_its_order(tmp_path: Path) -> None:
    all_ids = [prompt.id for prompt in load(tmp_path, *many(200))]
    limited = load(tmp_path, *many(200), search_limit=10, validation_limit=5)
    assert [prompt.split for prompt in limited].count("search") == 10
    assert [prompt.split for prompt in limited].count("validation") == 5
    positions = [all_ids.index(prompt.id) for prompt in limited]
    assert positions == sorted(positions)
    assert max(positions) > 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "x", "refrence": "y"}, "did you mean 'reference'"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, 'either "prompt" or "messages"'),
        ({"id": "x"}, 'either "prompt" or "messages"'),
        ({"prompt": " \n"}, "blank"),
        ({"prompt": "x", "reference": []}, "reference: is empty"),
        ({"prompt": "x", "reference": ["a", " "]}, "reference[1]: is blank"),
        ({"prompt": "x", "split": "test"}, "'search' or 'validation'"),
        ({"prompt": 3}, "prompt: "),
        ({"messages": []}, "must end with a user message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must end with a user message"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, "end with a user"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "system", "user")]},
            "a system message can only come first",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ({"prompt": "\ud800"}, "prompt: holds half of a surrogate pair"),
        ({"prompt": "x", "id": ""}, "id: is blank"),
        ({"prompt": "x", "reference": ["\ud800"]}, "surrogate"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_line(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n\n" + json.dumps(line) + "\n")
    with pytest.raises(PromptError) as caught:
        load_prompts(PromptsConfig(files=(path,)), root=tmp_path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert said in str(caught.value)


def test_a_wrong_yaml_item_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("# prompts\n- prompt: fine\n- promt: wrong\n")
    with pytest.raises(PromptError, match=r"p\.yaml:3: .*did you mean 'prompt'"):
        load_prompts(PromptsConfig(files=(path,)), root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b"[1, 2]\n", ":1: expected an object"),
        ("p.jsonl", b"{]\n", ":1: not JSON"),
        ("p.jsonl", b"1" * 5000, ":1: not JSON that can be read"),
        ("p.jsonl", b"[" * 100_000, ":1: not JSON that can be read"),
        ("p.jsonl", b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        ("p.yaml", b"prompt: x\n", ":1: expected a list"),
        ("p.yaml", b"- a: [\n", "not YAML"),
        ("p.yaml", b'- !!int ""\n', ":1: not a value"),
        ("p.yaml", b"- 2001-99-99\n", ":1: not a value"),
        ("p.yaml", b"- - - - deep\n", ":1: expected an object"),
        ("p.yaml", b"&a [*a]\n", ":1: "),
        ("p.yaml", b"[" * 10_000, "not YAML"),
        ("p.txt", b"", "neither .jsonl nor .yaml"),
        ("p.jsonl", b"", "no search prompts among 0"),
    ],
)
def test_an_unreadable_file_is_a_prompt_error(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError) as caught:
        load_prompts(PromptsConfig(files=(Path(name),)), root=tmp_path)
    assert said in str(caught.value)


def test_a_missing_file_names_the_setting(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "x"}])
    with pytest.raises(PromptError, match=r"prompts\.files\[1\]: cannot read .*nowhere\.jsonl"):
        load_prompts(PromptsConfig(files=(Path("prompts.jsonl"), Path("nowhere.jsonl"))), root=tmp_path)


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"prompts\.jsonl:2: id '7' is taken by .*prompts\.jsonl:1"):
        load(tmp_path, {"id": 7, "prompt": "a"}, {"id": "7", "prompt": "b"})


def test_the_same_conversation_twice_without_ids_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r":2: id .* is taken by .*:1 \(made from the same conversation"):
        load(tmp_path, {"prompt": "a"}, {"prompt": "a"})


def test_one_conversation_in_both_splits_is_refused(tmp_path: Path) -> None:
    lines = [{"id": "a", "prompt": "x", "split": "search"}, {"id": "b", "prompt": "x", "split": "validation"}]
    with pytest.raises(PromptError, match=r":2: the conversation of .*:1 again"):
        load(tmp_path, *lines)


@pytest.mark.parametrize("split", ["search", "validation"])
def test_an_empty_split_is_refused(tmp_path: Path, split: str) -> None:
    other = "search" if split == "validation" else "validation"
    with pytest.raises(PromptError, match=rf"prompts\.files: no {split} prompts among 1; .*\"split\": \"{split}\""):
        load(tmp_path, {"prompt": "x", "split": other})


@SAME_FOLDER
@given(st.lists(LINES, max_size=8), st.sampled_from(["jsonl", "yaml"]))
def test_what_is_written_is_what_is_read(tmp_path: Path, drawn: list[dict[str, Any]], suffix: str) -> None:
    lines = [{"id": f"id{number}", "prompt": f"q{number}", **line} for number, line in enumerate(drawn)]
    path = write(tmp_path, both(*lines))
    if suffix == "yaml":
        path = tmp_path / "prompts.yaml"
        path.write_text(yaml.safe_dump(both(*lines)), encoding="utf-8")
    prompts = load_prompts(PromptsConfig(files=(path,)), root=tmp_path)
    assert len(prompts) == len(lines) + 2
    for line, prompt in zip(lines, prompts, strict=False):
        reference = line.get("reference", ())
        assert prompt.id == line["id"]
        assert prompt.messages[0].content == line["prompt"]
        assert prompt.references == ((reference,) if isinstance(reference, str) else tuple(reference))
        assert (prompt.split, prompt.category) == (line["split"], line.get("category"))


def survives(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    try:
        load_prompts(PromptsConfig(files=(Path(name),)), root=folder)
    except PromptError as error:
        str(error).encode()  # a message that cannot be printed would hide itself


NAMES = st.sampled_from(["g.jsonl", "g.yaml"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "prompt", "messages", "reference", "role", "content", "split"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@SAME_FOLDER
@given(NAMES, st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_prompt_errors(tmp_path: Path, name: str, content: bytes) -> None:
    survives(tmp_path, name, content)


@SAME_FOLDER
@given(NAMES, st.text("-[]{}&*!:,'\"\\u0d8 \nabint#|>?%@", max_size=60))
def test_random_markup_raises_nothing_but_prompt_errors(tmp_path: Path, name: str, content: str) -> None:
    survives(tmp_path, name, content.encode())


@SAME_FOLDER
@given(st.lists(JSON, max_size=4))
def test_random_json_raises_nothing_but_prompt_errors(tmp_path: Path, values: list[Any]) -> None:
    survives(tmp_path, "g.jsonl", "\n".join(map(json.dumps, values)).encode())
    survives(tmp_path, "g.yaml", json.dumps(values).encode())
