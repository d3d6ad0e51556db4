"""The skeleton: a model folder without weights, on which engines start and whose tokenizer writes the prompts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from mergekit.architecture import arch_info_for_config
from mergekit.common import set_config_value
from transformers import AutoConfig, AutoTokenizer

from workers.checkpoint import TOKENIZER_FILES
from workers.ends import end_token_ids, token_ids
from workers.errors import ModelError
from workers.merge import Merger
from workers.models import Parent
from workers.recipe import Recipe
from workers.tokenizer_facts import read_tokenizer


def build_skeleton(recipe: Recipe, parents: Mapping[str, Parent], out: Path, *, chat_template: str | None) -> Path:
    """Writes what every merge of a run has in common: configuration, tokenizer, generation defaults.

    As mergekit's own merge writes them: configuration and tokenizer of the base model (else of the first one),
    the stored type of ``out_dtype``, and with ``tokenizer_source`` the merged tokenizer and its vocabulary size.

    Args:
        recipe: any recipe of the run; only its models, types and tokenizer settings matter.
        parents: the run's parents by name.
        out: the folder; replaced where it exists.
        chat_template: Jinja text; ``None`` keeps the tokenizer's own.

    Returns:
        ``out``.

    Raises:
        ModelError: the recipe or a tokenizer cannot be read.
    """
    merger = Merger({name: parent.folder for name, parent in parents.items()})
    merger.validate(recipe)
    donor = merger.donor(recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".skeleton-"))
    try:
        _write(recipe, merger, donor, temporary)
        _write_end_tokens(parents.values(), temporary)
        if chat_template is not None:
            # transformers prefers this file to whatever stands in tokenizer_config.json.
            (temporary / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def own_template(parents: Iterable[Parent]) -> str | None:
    """The chat template of the first parent that carries one (Jinja text), ``None`` where none does.

    Raises:
        ModelError: a tokenizer is missing or cannot be read.
    """
    for parent in parents:
        template = read_tokenizer(parent.folder).chat_template
        if template:
            return template
    return None


def tokenise(
    skeleton: Path,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    *,
    chat_template: str | None = None,
) -> list[list[int]]:
    """Conversations as the token ids that a model continues with its answer.

    Args:
        skeleton: folder with the tokenizer.
        conversations: each a list of ``{"role": ..., "content": ...}``.
        chat_template: Jinja text that overrides the skeleton's.

    Returns:
        Token ids per conversation, with exactly as many begin-of-text tokens as the template writes, at most one.

    Raises:
        ModelError: there is no chat template, or it refuses a conversation.
    """
    tokenizer = AutoTokenizer.from_pretrained(skeleton)
    if chat_template is None and not tokenizer.chat_template:
        raise ModelError(
            "none of the models carries a chat template, so nobody can say how a conversation is written. "
            "Set chat.template to llama-2, vicuna, or the path of a .jinja file."
        )
    tokenised: list[list[int]] = []
    for number, conversation in enumerate(conversations):
        try:
            ids = tokenizer.apply_chat_template(
                [dict(turn) for turn in conversation],
                chat_template=chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the chat template refuses conversation {number} "
                f"(roles {', '.join(turn['role'] for turn in conversation)}): {error}. "
                "Change the conversation, or set chat.template."
            ) from error
        ids = list(ids)
        # A template that writes the token itself, with a tokenizer that adds it as well.
        if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
            ids = ids[1:]
        if not ids:
            raise ModelError(f"the chat template turns conversation {number} into nothing. Set chat.template.")
        tokenised.append(ids)
    return tokenised


def _write(recipe: Recipe, merger: Merger, donor: Path, out: Path) -> None:
    config = AutoConfig.from_pretrained(donor, trust_remote_code=False)
    dtype = recipe.config.get("out_dtype") or recipe.config.get("dtype")
    if dtype:
        config.dtype = dtype
    tokenizer = merger.tokenizer(recipe)
    if tokenizer is None:
        for file in TOKENIZER_FILES:
            if (donor / file).exists():
                shutil.copy2(donor / file, out / file)
    else:
        tokenizer.save_pretrained(out)
        architecture = arch_info_for_config(config)
        key = (architecture and architecture.vocab_size_config_key) or "vocab_size"
        set_config_value(config, key, _vocabulary_size(recipe, len(tokenizer.get_vocab())))
    config.save_pretrained(out)
    if (donor / "generation_config.json").exists():
        shutil.copy2(donor / "generation_config.json", out / "generation_config.json")


def _write_end_tokens(parents: Iterable[Parent], out: Path) -> None:
    """Every token with which one of the models ends its answers ends a merge's, too.

    A chat model closes its turn with a token (``<|im_end|>``, ``<|eot_id|>``) that its base model's configuration,
    which a merge inherits, does not name as an end: such a merge would run on to the token limit.
    """
    vocabulary = read_tokenizer(out).vocabulary
    found = set(end_token_ids(out))
    for parent in parents:
        tokenizer = read_tokenizer(parent.folder).tokenizer
        names = tokenizer.convert_ids_to_tokens(sorted(end_token_ids(parent.folder)))
        found.update(vocabulary[name] for name in names if name in vocabulary)
    path = out / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # transformers' generate stops at what this file names, whatever the tokenizer says.
    if found and set(token_ids(settings.get("eos_token_id"))) != found:
        path.write_text(json.dumps({**settings, "eos_token_id": sorted(found)}, indent=2) + "\n", encoding="utf-8")


def _vocabulary_size(recipe: Recipe, tokens: int) -> int:
    """The number of embedding rows: tokens rounded up to ``tokenizer.pad_to_multiple_of``."""
    multiple = (recipe.config.get("tokenizer") or {}).get("pad_to_multiple_of") or 1
    return -(-tokens // multiple) * multiple
