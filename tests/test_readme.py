"""What the README says holds: commands parse, targets exist, configs are valid, files are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from evolve.cli import app
from evolve.config import parse_config
from fitness.generation import resolve_generation
from fitness.prompt_files import read_entries

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.ja.md")
EXAMPLE = ROOT / "configs" / "examples" / "llama2-roleplay.yaml"
# What a reader's shell has, beside our own commands.
SHELL = {"source", "export", "if", "fi", "then", "else", "[", "wait", "kill", "trap", "exit", "scontrol", "pip"}
SHELL |= {"optuna-dashboard"}


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(readme), flags=re.MULTILINE | re.DOTALL)


def without_comments(block: str) -> str:
    return "\n".join(re.sub(r"\s+# .*$", "", line) for line in block.splitlines())


def commands(block: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as words, without what redirects or backgrounds them."""
    for line in block.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|"):
                words.append(word)
                continue
            while words and (words[0] in ("if", "then", "else") or re.fullmatch(r"\w+=.*", words[0])):
                words = words[1:]
            if words:
                yield words
            words = []


def all_commands() -> list[list[str]]:
    fenced = [command for readme in READMES for block in blocks(readme, "bash") for command in commands(block)]
    inline = re.findall(r"`((?:evolve|make) [^`]+)`", "".join(text_of(readme) for readme in READMES))
    return fenced + [shlex.split(one) for one in inline]


def test_the_shell_reader_finds_commands_behind_assignments_and_conditions() -> None:
    script = 'A=1 evolve runs & \nif [ -f x ]; then evolve resume "a b"; fi   # done'
    assert list(commands(script)) == [["evolve", "runs"], ["[", "-f", "x", "]"], ["evolve", "resume", "a b"], ["fi"]]


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_command_can_be_typed(words: list[str]) -> None:
    name, *arguments = words
    if name == "evolve":
        parse(arguments)
        for argument in arguments:
            if argument.endswith(".yaml"):
                assert (ROOT / argument).is_file(), f"{argument} does not exist"
    elif name == "make":
        targets = [argument for argument in arguments if "=" not in argument]
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
    else:
        assert name in SHELL, f"{name}: nobody has checked this command"


def parse(arguments: list[str]) -> None:
    """As the command line would, without running it; raises its errors."""
    group: Any = typer.main.get_command(app)
    while arguments and arguments[0] != "--help" and hasattr(group, "commands"):
        name, *arguments = arguments
        if group.name == "check" and name not in group.commands:
            name, arguments = "config", [name, *arguments]
        assert name in group.commands, f"evolve has no command {name}"
        group = group.commands[name]
    if arguments and not hasattr(group, "commands"):  # a bare name in running text stands for the command
        group.make_context(group.name, arguments)


def test_an_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["run", "run.yaml", "--nmae", "x"])


@pytest.mark.parametrize("readme", READMES)
def test_yaml_is_a_valid_config(readme: str) -> None:
    whole = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    found = blocks(readme, "yaml")
    assert found
    for block in found:
        data = yaml.safe_load(block)
        config = parse_config({**whole, **data}, source=str(EXAMPLE))  # a part is laid over the whole example
        resolve_generation(config.generation)


@pytest.mark.parametrize("readme", READMES)
def test_first_config_is_the_shipped_example(readme: str) -> None:
    assert blocks(readme, "yaml")[0] == EXAMPLE.read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES)
def test_prompts_can_be_read(readme: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(readme, "json")):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(block, encoding="utf-8")
        assert len(read_entries(path, setting="test")) == len(block.splitlines())
        assert all(json.loads(line) for line in block.splitlines())


@pytest.mark.parametrize("language", ["bash", "yaml", "json"])
def test_both_languages_show_the_same_code(language: str) -> None:
    english, japanese = ([without_comments(block) for block in blocks(readme, language)] for readme in READMES)
    assert english == japanese


@pytest.mark.parametrize("readme", READMES)
def test_demo_output_stands_between_its_markers(readme: str) -> None:
    before, output, after = text_of(readme).split("<!-- demo output -->")
    assert output.strip().startswith("```text")
    assert before
    assert after
    assert output == text_of("README.md").split("<!-- demo output -->")[1]


@pytest.mark.parametrize("readme", READMES)
def test_tree_captions_every_module_and_nothing_else(readme: str) -> None:
    tree, package = blocks(readme, "text")[-1], ""
    named = set()
    for line in tree.splitlines():
        head = re.match(r"[\w./-]+", line)
        if head:
            package = head[0] if head[0].endswith("/") else ""
            assert (ROOT / head[0]).exists(), head[0]
        named |= {package + name for name in re.findall(r"\b\w+\.py\b", line) if line.startswith(" ")}
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("evolve", "workers", "fitness")
        for path in (ROOT / package).glob("*.py")
        if path.name not in ("__init__.py", "errors.py")
    }
    helpers = {"fitness/responses.py", "fitness/shipped.py", "fitness/explain.py"}
    assert named - modules == set()
    assert modules - named - helpers == set()


@pytest.mark.parametrize("readme", [*READMES, "docs/architecture.md", "docs/log.md", "CHANGELOG.md"])
def test_links_lead_somewhere(readme: str) -> None:
    folder = (ROOT / readme).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(readme)):
        assert "://" in target or (folder / target).exists(), target


@pytest.mark.parametrize("cut_short", [False, True], ids=["ends by itself", "near its time limit"])
def test_slurm_script_requeues_exactly_when_it_was_cut_short(tmp_path: Path, cut_short: bool) -> None:
    """The shell logic alone: ``evolve`` and ``scontrol`` are stand-ins that write down how they were called."""
    (script,) = (block for block in blocks("README.md", "bash") if "#SBATCH" in block)
    bin_dir = tmp_path / ".venv" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "activate").write_text(f'PATH="{bin_dir}:$PATH"\n')
    finish = "trap 'exit 130' TERM\ntouch started\nwhile true; do sleep 0.05; done\n" if cut_short else ""
    for name, body in (("evolve", finish), ("scontrol", "")):
        (bin_dir / name).write_text(f'#!/bin/bash\necho "{name} $*" >> calls\n{body}')
        (bin_dir / name).chmod(0o755)

    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env={**os.environ, "SLURM_JOB_ID": "7"})
    if cut_short:
        deadline = time.monotonic() + 20
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    status = process.wait(timeout=20)

    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "evolve run configs/examples/llama2-roleplay.yaml --name persona --force"
    assert calls[1:] == (["scontrol requeue 7"] if cut_short else [])
    assert status == (130 if cut_short else 0)
