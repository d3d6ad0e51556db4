"""A process of its own: answers prompts with a vLLM engine started afresh on each of some model folders.

Called by the tests as ``python fresh_engine.py REQUEST ANSWERS``, two JSON files. REQUEST: ``{"folders": [...],
"prompts": [[token ids]], "max_new_tokens": n}``. ANSWERS: per folder, per prompt, ``[text, tokens, finish]``, and the
seconds that each engine took to start.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.distributed import cleanup_dist_env_and_memory

    request = json.loads(Path(sys.argv[1]).read_text())
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=request["max_new_tokens"])
    answers, seconds = [], []
    for folder in request["folders"]:
        started = time.perf_counter()
        llm = LLM(folder, dtype="float32", max_model_len=256, enforce_eager=True, gpu_memory_utilization=0.5)
        seconds.append(time.perf_counter() - started)
        outputs = [output.outputs[0] for output in llm.generate(prompts, greedy, use_tqdm=False)]
        answers.append([[o.text, len(o.token_ids), o.finish_reason] for o in outputs])
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
    Path(sys.argv[2]).write_text(json.dumps({"answers": answers, "seconds": seconds}))


if __name__ == "__main__":
    main()
