"""How long until a new merge answers: swapped into a live vLLM engine, or written by mergekit for a fresh engine.

    python benchmarks/swap.py [--hidden 256] [--layers 4] [--method ties] [--swaps 5]

Both ways are timed in the same run on the same random Llama-shaped models, up to and including the first token of an
answer. The fresh way is timed as a script would do it: mergekit's merge to disk, then a new process with a new engine;
the engine's own start-up (without process start and imports) is shown as well. The live way's engine is started once
per run, not per merge, so its start is shown but not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = list(range(10, 42))
POSITIONS = 128


def build_models(root: Path, hidden: int, layers: int) -> tuple[dict[str, Path], int]:
    """Three bfloat16 models with a tokenizer; returns their folders and the bytes of one."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {f"t{i}": i for i in range(4096)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t0")), eos_token="t1", pad_token="t0"
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=POSITIONS,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    folders, size = {}, 0
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        folders[name] = root / name
    return folders, size


def make_config(method: str, folders: dict[str, str], weight: float) -> dict[str, Any]:
    parameters = {"weight": weight, "density": 0.5} if method == "ties" else {"weight": weight}
    config = {
        "merge_method": method,
        "models": [{"model": folders[name], "parameters": parameters} for name in ("one", "two")],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    return config | ({} if method == "linear" else {"base_model": folders["base"]})


def live(request: dict[str, Any]) -> dict[str, Any]:
    from fitness.generation import PRESETS, Generation
    from workers.engine import EngineSpec
    from workers.models import Parent
    from workers.recipe import Recipe
    from workers.skeleton import build_skeleton
    from workers.vllm_engine import VllmEngine

    folders = {folder: Path(folder) for folder in request["folders"].values()}
    recipes = [
        Recipe(make_config(request["method"], request["folders"], 0.3 + 0.1 * i)) for i in range(request["swaps"])
    ]
    parents = {name: Parent(name, folder, lora=False) for name, folder in folders.items()}
    skeleton = build_skeleton(recipes[0], parents, Path(request["out"]), chat_template=None)
    started = time.perf_counter()
    engine = VllmEngine(EngineSpec("vllm", skeleton, folders, max_model_len=POSITIONS))
    result: dict[str, Any] = {"start": time.perf_counter() - started, "swap": [], "first_token": []}
    one: Generation = PRESETS["greedy-short"]
    one = Generation(one.preset, max_new_tokens=1)
    for recipe in recipes:
        started = time.perf_counter()
        result["swap"].append(engine.swap(recipe))
        engine.generate([("p", PROMPT)], one, [0])
        result["first_token"].append(time.perf_counter() - started)
    engine.close()
    return result


def fresh(request: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams, TokensPrompt

    started = time.perf_counter()
    dtype = request["dtype"]
    llm = LLM(request["folder"], dtype=dtype, max_model_len=POSITIONS, enforce_eager=dtype == "float32")
    start = time.perf_counter() - started
    llm.generate([TokensPrompt(prompt_token_ids=PROMPT)], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return {"engine_start": start}


def child(role: str, request: dict[str, Any], root: Path) -> dict[str, Any]:
    """Runs ``live`` or ``fresh`` in a process of its own and returns what it measured, and its wall time."""
    import os

    (root / "request.json").write_text(json.dumps(request))
    env = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"} | env
    command = [sys.executable, __file__, "--role", role, "--root", str(root)]
    started = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {**json.loads((root / "result.json").read_text()), "wall": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--method", choices=("linear", "task_arithmetic", "ties"), default="ties")
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--role", choices=("live", "fresh"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        request = json.loads((arguments.root / "request.json").read_text())
        result = {"live": live, "fresh": fresh}[arguments.role](request)
        (arguments.root / "result.json").write_text(json.dumps(result))
        return

    import torch
    import yaml

    with tempfile.TemporaryDirectory(prefix="evolve-swap-") as name:
        root = Path(name)
        folders, model_bytes = build_models(root, arguments.hidden, arguments.layers)
        request: dict[str, Any] = {
            "folders": {name: str(folder) for name, folder in folders.items()},
            "method": arguments.method,
            "swaps": arguments.swaps,
            "out": str(root / "skeleton"),
            "folder": str(root / "merged"),
            "dtype": "auto" if torch.cuda.is_available() else "float32",
        }
        measured = child("live", request, root)
        (root / "merge.yml").write_text(yaml.safe_dump(make_config(arguments.method, request["folders"], 0.3)))
        started = time.perf_counter()
        mergekit = [str(Path(sys.executable).with_name("mergekit-yaml")), str(root / "merge.yml"), request["folder"]]
        subprocess.run([*mergekit, "--quiet"], check=True, capture_output=True)
        merge_seconds = time.perf_counter() - started
        new = child("fresh", request, root)

    swap, answer = statistics.median(measured["swap"]), statistics.median(measured["first_token"])
    total = merge_seconds + new["wall"]
    report = {
        "method": arguments.method,
        "model_mib": round(model_bytes / 2**20, 1),
        "swap_seconds_median": round(swap, 3),
        "swap_to_first_token_seconds_median": round(answer, 3),
        "live_engine_start_seconds_once": round(measured["start"], 1),
        "fresh_mergekit_yaml_seconds": round(merge_seconds, 1),
        "fresh_process_and_engine_seconds": round(new["wall"], 1),
        "of_which_engine_start_seconds": round(new["engine_start"], 1),
        "ratio_to_first_token": round(total / answer, 1),
        "ratio_engine_start_alone_to_swap": round(new["engine_start"] / swap, 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
