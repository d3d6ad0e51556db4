"""``evolve check`` without weights on models of 13 GB each: true Llama-2-7B shapes in files that are all holes."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from evolve.check import check
from evolve.config import RunConfig

MakeConfig = Callable[..., RunConfig]

LAYERS, HIDDEN, INTERMEDIATE, ROWS = 32, 4096, 11008, 32000


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor of Llama-2-7B, in the model's order."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        found |= {f"{prefix}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        found |= {f"{prefix}.mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        found[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found |= {f"{prefix}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file whose header is real and whose values were never written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_model(folder: Path, small: Path) -> None:
    """A folder of the large size with a small model's tokenizer."""
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("model*.safetensors*"))
    config = json.loads((folder / "config.json").read_text())
    heads = LAYERS
    config |= {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": HIDDEN // heads}
    config |= {"vocab_size": ROWS, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(shapes().items())
    middle = len(tensors) // 2
    weight_map = {}
    for number, part in enumerate((tensors[:middle], tensors[middle:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        write_shard(folder / file, dict(part))
        weight_map |= dict.fromkeys(dict(part), file)
    index = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes().values()))}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """How much the resident memory of this process grew at most, in bytes, looked at every 5 ms."""
    process, done, found = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def test_parents_of_13_gb_are_checked_by_their_headers(make_config: MakeConfig, llama: Any, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("base", "one", "two")]
    for folder in folders:
        write_model(folder, Path(llama.root / folder.name))
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in folders]
    assert all(13.4e9 < size < 13.5e9 for size in sizes)
    base, *children = map(str, folders)
    config = make_config(**{"genome.models": children, "genome.base_model": base})
    begun = time.monotonic()
    with peak_growth() as grown:
        report = check(config, weights=False, ask=False, runs_dir=tmp_path / "runs")
    seconds = time.monotonic() - begun
    assert [one for one in report.findings if one.level == "error" and one.check != "memory"] == []
    evidence = report.findings[-1].evidence  # the memory's, which is looked at last
    values = sum(map(math.prod, shapes().values()))
    assert evidence["weights"] == values * (2 if evidence["on_gpu"] else 4)
    assert evidence["parents"] == sum(sizes)
    assert grown[0] < 500e6
    assert seconds < 30  # measured: half a second
