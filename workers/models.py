"""The parents: where they lie, whether they can be merged with each other, how they are built.

``resolve_parents`` turns what the user wrote (a folder, a hub id, ``base+adapter``) into local folders with
safetensors weights; everything after it works with folders only.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from mergekit.architecture import WeightInfo, get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from transformers import AutoConfig

from workers.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, pickles
from workers.convert import converted
from workers.errors import ModelError
from workers.lora import merge_adapter

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab*", "README.md"]
_HUB_IGNORED = ["consolidated*", "original/*", "onnx/*", "*.gguf"]
# Not parameters: buffers that old checkpoints carry and every loader ignores.
IGNORABLE = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Parent:
    """A model to be merged.

    Attributes:
        name: as the user wrote it.
        folder: the local folder with its safetensors weights (for a LoRA, the merged one in the cache).
        lora: whether it was written as ``base+adapter``.
    """

    name: str
    folder: Path
    lora: bool


def fingerprint(parents: Iterable[Parent]) -> str:
    """Changes when the weights of a parent do, wherever they lie; reads a sample of each file (16 x 4 KiB)."""
    digest = hashlib.sha256()
    for parent in parents:
        digest.update(parent.name.encode())
        for path in sorted(parent.folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for part in range(16):
                    file.seek(max(0, size - 4096) * part // 15)
                    digest.update(file.read(4096))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Architecture:
    """The tensors of a model in the order of its layers.

    Attributes:
        num_layers: number of transformer layers.
        pre: names of the tensors before the first layer (embeddings).
        layers: per layer, the names of its tensors.
        post: names of the tensors after the last layer (norm, and the head where it is stored).
        dtype: how the weights are stored: ``bfloat16``, ``float16`` or ``float32``.
    """

    num_layers: int
    pre: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    post: tuple[str, ...]
    dtype: str = "bfloat16"


def resolve_parents(
    names: Sequence[str], *, cache_dir: Path, root: Path, allow_pickles: Collection[str] = ()
) -> dict[str, Parent]:
    """Local folders for the models that the user named.

    Args:
        names: local folders (relative to ``root`` or absolute), hub ids with an optional ``@revision``,
            or ``base+adapter`` of either.
        cache_dir: where merged LoRA adapters and lock files are kept; hub downloads go to the hub's own cache.
        root: what relative folders are relative to.
        allow_pickles: those of the names whose pickled weights are converted rather than refused; local folders only.

    Returns:
        A parent per distinct name, in the order given.

    Raises:
        ModelError: a model is missing, unreadable, in pickle format, or quantised.
    """
    parents: dict[str, Parent] = {}
    for name in names:
        if name in parents:
            continue
        base, plus, adapter = name.partition("+")
        if not plus or (root / name).is_dir():
            folder = _model_folder(name, root, cache_dir, convert=name in allow_pickles)
            parents[name] = Parent(name, folder, lora=False)
            continue
        base_folder = _model_folder(base, root, cache_dir)
        adapter_folder = _locate(adapter, root, cache_dir)
        merged = merge_adapter(name, base_folder, adapter_folder, cache_dir=cache_dir)
        parents[name] = Parent(name, merged, lora=True)
    return parents


def check_compatible(parents: Mapping[str, Parent] | Iterable[Parent], *, tokenizer_source: str | None = None) -> None:
    """Same architecture and the same shape for every tensor.

    Args:
        parents: the models of one run.
        tokenizer_source: where given, vocabularies may differ, since mergekit aligns them.

    Raises:
        ModelError: names the tensor, both shapes, both models, and what to do.
    """
    members = list(parents.values() if isinstance(parents, Mapping) else parents)
    if not members:
        raise ModelError("no models to merge: list at least two under `genome.models`.")
    first = Checkpoint(members[0].name, members[0].folder)
    vocabulary = _vocabulary_axes(members[0]) if tokenizer_source is not None else {}
    for member in members:
        checkpoint = Checkpoint(member.name, member.folder)
        _ = checkpoint.dtype  # refuses quantised weights
        _check_known(member, checkpoint)
        if member is members[0]:
            continue
        _check_config(first, checkpoint)
        _check_shapes(first, checkpoint, vocabulary)


def read_architecture(parent: Parent | Path) -> Architecture:
    """The model's tensors by layer, as mergekit sees them, restricted to those that are stored.

    Args:
        parent: a parent, or the folder of one.

    Raises:
        ModelError: mergekit cannot tell its layers.
    """
    parent = Parent(str(parent), parent, lora=False) if isinstance(parent, Path) else parent
    checkpoint = Checkpoint(parent.name, parent.folder)
    pre, layers, post = _weights(parent)
    stored = checkpoint.tensors

    def names(weights: Iterable[WeightInfo]) -> tuple[str, ...]:
        return tuple(w.name for w in weights if any(n in stored for n in (w.name, *(w.aliases or ()))))

    return Architecture(
        num_layers=len(layers),
        pre=names(pre),
        layers=tuple(names(layer) for layer in layers),
        post=names(post),
        dtype=checkpoint.dtype,
    )


def _weights(parent: Parent) -> tuple[list[WeightInfo], list[list[WeightInfo]], list[WeightInfo]]:
    """mergekit's description of a model: weights before, per layer, after."""
    reference: dict[str, Any] = {"model": {"path": str(parent.folder)}}
    config = MergeConfiguration.model_validate(
        {"merge_method": "passthrough", "models": [{"model": reference}], "dtype": "float32"}
    )
    try:
        architecture = get_architecture_info(config, MergeOptions())
        model_config = AutoConfig.from_pretrained(parent.folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers and mergekit raise on a model they do not know
        raise ModelError(
            f"model {parent.name!r}: neither mergekit nor transformers can read its architecture "
            f"({type(error).__name__}: {error}). Check config.json in {parent.folder}."
        ) from error
    if len(architecture.modules) != 1:
        raise ModelError(
            f"model {parent.name!r} has {len(architecture.modules)} stacks of layers "
            f"({', '.join(architecture.modules)}); only text models with one stack can be searched. "
            "Use the language model alone."
        )
    (module,) = architecture.modules.values()
    info = module.architecture
    layers = [list(info.layer_weights(i, model_config) or ()) for i in range(info.num_layers(model_config))]
    return list(info.pre_weights(model_config)), layers, list(info.post_weights(model_config))


def _all_weights(parent: Parent) -> list[WeightInfo]:
    pre, layers, post = _weights(parent)
    return [*pre, *(weight for layer in layers for weight in layer), *post]


def _vocabulary_axes(parent: Parent) -> dict[str, int]:
    return {w.name: w.vocabulary_axis for w in _all_weights(parent) if w.vocabulary_axis is not None}


def _check_known(parent: Parent, checkpoint: Checkpoint) -> None:
    """A tensor that mergekit does not know, and one that is not stored, leave the merge without a word: say it here."""
    names = {w: (w.name, *(w.aliases or ()), *(w.tied_names or ())) for w in _all_weights(parent)}
    missing = [w.name for w in names if not w.optional and not any(name in checkpoint.tensors for name in names[w])]
    if missing:
        raise ModelError(
            f"model {parent.name!r}: its weights lack {missing[0]!r} ({len(missing)} such), which its architecture "
            "has. Fetch the model again: loaders fill missing tensors with random numbers."
        )
    known = {name for several in names.values() for name in several}
    unknown = [n for n in checkpoint.tensors if n not in known and not n.endswith(IGNORABLE)]
    if unknown:
        architecture = ", ".join(checkpoint.config.get("architectures") or ())
        raise ModelError(
            f"model {parent.name!r}: mergekit's description of {architecture} does not know the stored tensor "
            f"{unknown[0]!r} ({len(unknown)} such), so a merge would lose it. "
            "Remove it from the checkpoint if nothing needs it, or use a mergekit that knows it."
        )


def _check_config(first: Checkpoint, other: Checkpoint) -> None:
    for key in ("architectures", "tie_word_embeddings"):
        a, b = first.config.get(key), other.config.get(key)
        if key == "tie_word_embeddings":
            a, b = _tied(first), _tied(other)
        if a != b:
            raise ModelError(
                f"models {first.name!r} and {other.name!r} differ in {key} of config.json: {a} against {b}. "
                "A merge needs models of one family: choose fine-tunes of the same base model."
            )


def _tied(checkpoint: Checkpoint) -> bool:
    """Whether input and output embeddings are one tensor; its default depends on the model's class."""
    return bool(AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False).tie_word_embeddings)


def _check_shapes(first: Checkpoint, other: Checkpoint, vocabulary: Mapping[str, int]) -> None:
    tied = _tied(first)
    for name in first.tensors.keys() | other.tensors.keys():
        if name.endswith(IGNORABLE) or (tied and name.endswith("lm_head.weight")):
            continue  # a tied head may be stored or not: no loader reads it
        if name not in first.tensors or name not in other.tensors:
            has, lacks = (first, other) if name in first.tensors else (other, first)
            raise ModelError(
                f"tensor {name!r} is in model {has.name!r} and not in {lacks.name!r}. "
                "A merge needs models with the same tensors: choose fine-tunes of the same base model."
            )
        a, b = first.tensors[name].shape, other.tensors[name].shape
        if a == b:
            continue
        axis = vocabulary.get(name)
        if axis is not None and _without(a, axis) == _without(b, axis):
            continue
        remedy = "Choose fine-tunes of the same base model."
        if "embed" in name or "lm_head" in name:
            remedy = "If only the vocabularies differ, set `genome.tokenizer_source` to `base`, `union` or a model."
        raise ModelError(
            f"tensor {name!r} has shape {list(a)} in model {first.name!r} and {list(b)} in {other.name!r}; "
            f"a merge needs equal shapes. {remedy}"
        )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _model_folder(name: str, root: Path, cache_dir: Path, *, convert: bool = False) -> Path:
    """The folder of a model with weights that can be read safely."""
    folder = _locate(name, root, cache_dir)
    config = Checkpoint(name, folder).config
    if not config.get("architectures"):
        raise ModelError(
            f"model {name!r}: {folder / 'config.json'} names no `architectures`, so nobody can tell what it is. "
            'Add the class name, such as "architectures": ["LlamaForCausalLM"].'
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise ModelError(
            f"model {name!r} is quantised ({method}); a merge needs plain bfloat16, float16 or float32 weights. "
            "Use the model's unquantised version."
        )
    if (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists():
        return folder
    found = pickles(folder)
    if found and convert:
        return converted(folder, cache_dir)
    if found:
        raise ModelError(
            f"model {name!r} stores its weights as Python pickles ({found[0]}), and loading a pickle can run "
            f"any code. Convert it once, safely: evolve convert {folder} --out {folder}-safetensors"
        )
    other = sorted(p.name for p in folder.glob("*.safetensors"))
    if other:
        raise ModelError(
            f"model {name!r}: {folder} has {other[0]} but neither {SINGLE_FILE} nor {INDEX_FILE}. "
            f"A single file must be called {SINGLE_FILE}; shards need their index."
        )
    raise ModelError(f"model {name!r}: {folder} has no weights. Expected {SINGLE_FILE} or {INDEX_FILE}.")


def _locate(name: str, root: Path, cache_dir: Path) -> Path:
    """The folder for a local path or a hub id, downloaded where need be."""
    folder = (root / Path(name).expanduser()).resolve()
    if folder.is_dir():
        return folder
    if _HUB_ID.fullmatch(name):
        return _download(name, folder, cache_dir)
    raise ModelError(f"model {name!r}: there is no folder {folder}.{_suggest(folder)}")


def _suggest(folder: Path) -> str:
    siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, siblings, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(str(folder.parent / n) for n in near)}?"
    if not folder.parent.is_dir():
        return f" Not even {folder.parent} exists. Give the folder of a model, or a hub id such as org/name."
    return " Give the folder of a model, or a hub id such as org/name."


def _download(name: str, folder: Path, cache_dir: Path) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    locks = cache_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        # One download per node: whoever comes second finds the files in the hub's cache.
        with FileLock(locks / (repo.replace("/", "--") + ".lock")):
            local = Path(
                snapshot_download(
                    repo,
                    revision=revision or None,
                    allow_patterns=_HUB_FILES,
                    ignore_patterns=_HUB_IGNORED,
                )
            )
            if not any(local.glob("*.safetensors")):
                files = list_repo_files(repo, revision=revision or None)
                if any(f.endswith((".bin", ".pt", ".pth")) for f in files):
                    target = repo.rsplit("/", 1)[-1]
                    raise ModelError(
                        f"model {name!r} is on the hub in pickle format only, and loading a pickle can run any "
                        f"code. Convert it once, safely: hf download {repo} --local-dir {target} && "
                        f"evolve convert {target} --out {target}-safetensors"
                    )
            return local
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r} is gated on the hub. Accept its terms on its page, then `hf auth login` "
            "(or set HF_TOKEN) on this machine."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name!r}: there is no folder {folder}, and the hub did not give a model of that name "
            f"({reason}).{_suggest(folder)}"
        ) from error
