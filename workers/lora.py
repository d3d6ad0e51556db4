"""Merges a LoRA adapter into its base model, once, into a cached folder.

The same steps as mergekit's ``ModelReference.merged`` (PEFT's ``merge_and_unload``), with three differences:
the result appears atomically, it carries the tokenizer, and a changed adapter gives another folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from workers.checkpoint import TOKENIZER_FILES
from workers.errors import ModelError, last_line


def merge_adapter(name: str, base: Path, adapter: Path, *, cache_dir: Path) -> Path:
    """A folder with the adapter merged into its base model.

    Args:
        name: how the user wrote the pair, for messages.
        base: folder of the base model, safetensors.
        adapter: folder of the PEFT adapter, safetensors.
        cache_dir: where the result is kept.

    Raises:
        ModelError: the adapter is missing, stored as a pickle, or does not fit its base.
    """
    _check_adapter(name, adapter)
    target = cache_dir / "lora" / f"{base.name}--{adapter.name}--{_fingerprint(base, adapter)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".merging-"))
        try:
            _merge(name, base, adapter, temporary)
            temporary.chmod(0o755)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_adapter(name: str, adapter: Path) -> None:
    if not (adapter / "adapter_config.json").exists():
        raise ModelError(
            f"model {name!r}: {adapter} has no adapter_config.json, so it is no PEFT adapter. "
            "Write base+adapter with the folder that PEFT's `save_pretrained` wrote."
        )
    if not (adapter / "adapter_model.safetensors").exists():
        kind = "a Python pickle (adapter_model.bin)" if (adapter / "adapter_model.bin").exists() else "missing"
        raise ModelError(
            f"model {name!r}: the adapter's weights in {adapter} are {kind}; only adapter_model.safetensors is "
            f"read. Convert a pickle once, safely: evolve convert {adapter} --out {adapter}-safetensors"
        )


def _merge(name: str, base: Path, adapter: Path, out: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", low_cpu_mem_usage=True)
        model = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
        model.merge_and_unload().save_pretrained(out)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model {name!r}: its base or its adapter cannot be read ({last_line(error)}). Fetch both again."
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {name!r}: the adapter does not fit its base model ({str(error).splitlines()[0]}). "
            "Check base_model_name_or_path in its adapter_config.json."
        ) from error
    has_tokenizer = any((adapter / f).exists() for f in ("tokenizer.json", "tokenizer.model"))
    source = adapter if has_tokenizer else base
    for file in TOKENIZER_FILES:
        if (source / file).exists():
            shutil.copy2(source / file, out / file)
    if not (out / "generation_config.json").exists() and (base / "generation_config.json").exists():
        shutil.copy2(base / "generation_config.json", out / "generation_config.json")


def _fingerprint(*folders: Path) -> str:
    """Changes when a weight file is replaced; reads no weights."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(str(folder.resolve()).encode())
        # adapter_config.json holds the scale (alpha, rank) and the targets.
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")]):
            status = file.stat()
            digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
