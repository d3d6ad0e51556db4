"""Whether each model folder, taken by itself, is safe to load and whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from fitness.findings import Finding, Level
from workers.comparison import LISTED, WHERE, some
from workers.model_facts import ModelFacts
from workers.template_checks import tokens_written

_LAYER = re.compile(r"\.(\d+)\.")


def safe_to_load(members: Sequence[ModelFacts], *, allow_remote_code: Collection[str]) -> Iterator[Finding]:
    """Whether the folders hold pickles, or ask to run code.

    Args:
        members: the models.
        allow_remote_code: names of models that may bring code of their own. It is never run here.
    """
    unsafe = [one for one in members if one.pickles and not one.tensors]
    for one in unsafe:
        message = f"The weights are Python pickles ({one.pickles[0]}), and loading a pickle can run any code."
        remedy = f"Convert it once, safely: evolve convert {one.folder} --out {one.folder}-safetensors"
        yield Finding("pickle-weights", "error", one.name, message, remedy, {"files": list(one.pickles)})
    if not unsafe:
        yield Finding("pickle-weights", "ok", WHERE, "No model needs a pickle to be loaded.")
    coded = [one for one in members if one.remote_code]
    for one in coded:
        message = f"The folder asks to run its own code ({', '.join(one.remote_code)}), which evolve never does."
        if one.native and one.name in allow_remote_code:
            message += " It is allowed by name, and transformers' own class is used in its place."
            yield Finding("remote-code", "note", one.name, message)
            continue
        remedy = (
            "transformers knows this architecture itself: remove auto_map from config.json and tokenizer_config.json, "
            "or list the model under genome.allow_remote_code."
            if one.native
            else "Use a model of an architecture that transformers knows itself."
        )
        yield Finding("remote-code", "error", one.name, message, remedy, {"auto_map": list(one.remote_code)})
    if not coded:
        yield Finding("remote-code", "ok", WHERE, "No model brings code of its own.")


def folder_is_whole(members: Sequence[ModelFacts]) -> list[Finding]:
    """Whether configuration, weights and tokenizer of each model belong together."""
    findings = []
    for one in members:
        configured = one.settings.get("vocab_size")
        if one.tensors and configured and one.rows != configured:
            message = f"config.json says vocab_size {configured}, the stored embedding has {one.rows} rows."
            remedy = f"Set vocab_size to {one.rows} in config.json, or fetch the matching weights."
            findings.append(Finding("folder-is-whole", "error", one.name, message, remedy))
        layers = {int(found[1]) for found in map(_LAYER.search, one.tensors) if found}
        missing = sorted(set(range(one.settings.get("num_hidden_layers") or 0)) - layers) if one.tensors else []
        if missing:
            message = f"config.json says {one.settings['num_hidden_layers']} layers; no weights for {some(missing)}."
            remedy = "Fetch the model again: loaders fill missing layers with random numbers."
            findings.append(Finding("folder-is-whole", "error", one.name, message, remedy))
        if one.tokenizer and one.homeless:
            shown = some(one.homeless)
            message = f"{len(one.homeless)} tokens have no row in the embedding ({one.rows} rows): {shown}."
            used = sorted(tokens_written(one.tokenizer).intersection(one.homeless))
            if used:
                message += f" The chat template writes {some(used)}, which no engine can read."
            remedy = "Resize the embeddings (resize_token_embeddings), or use the tokenizer the weights came with."
            evidence = {"count": len(one.homeless), "tokens": list(one.homeless[:LISTED]), "used": used}
            level: Level = "error" if used else "warning"
            findings.append(Finding("folder-is-whole", level, one.name, message, remedy, evidence))
    if not findings and members:
        findings.append(
            Finding("folder-is-whole", "ok", WHERE, "Layers, embeddings and tokenizers match their configs.")
        )
    return findings
