#!/usr/bin/env bash
# The demo with a judge in the loop: vLLM's own server on loopback, and a search that asks it.
# Run as `make demo-judged`; arguments go to `evolve demo`, such as --name. Ends with the demo's exit code.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python="$root/.venv/bin/python"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" HF_HUB_OFFLINE=1

if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then
    echo "error: this demo serves its judge with vLLM, which is not installed in .venv (make setup EXTRA=cpu or gpu)." >&2
    exit 2
fi

# Always the same one, because a run that is gone on with asks the address that stands in its config.
port="${PORT:-18643}"
if ! "$python" -c "import socket
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(('127.0.0.1', $port))" 2>/dev/null; then
    echo "error: port $port is taken; free it, or name another: PORT=18644 make demo-judged." >&2
    exit 2
fi

cat <<'TEXT'
The judge of this demo is a model of 3 million random weights: it proves the protocol, not judgement. Its reasons are
noise, and so are its scores; they weigh little beside the demo's own metrics.
TEXT

cd "$root"
model=$("$python" -c 'from rich.console import Console
from evolve.demo import demo_models
print(demo_models(Console(stderr=True)).base)')
log=$(mktemp -t demo-judge.XXXXXX.log)
server=

stop() {
    # The server's engine is a process of its own, in the same group.
    if [ -n "$server" ]; then
        kill -- "-$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        kill -KILL -- "-$server" 2>/dev/null || true
    fi
    rm -f "$log"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Of the demo's base only tokenizer and shape are used (`--load-format dummy`): random weights write every token as
# readily as the quotation mark that ends a reason, trained ones would go on about capitals for ever. They know 256
# positions, a rubric needs more. And a model that may write blanks between the parts of a JSON object can write
# nothing else until it runs into the limit.
VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_NO_USAGE_STATS=1 \
    setsid "$python" -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port "$port" \
    --model "$model" --load-format dummy --served-model-name demo-judge \
    --hf-overrides '{"max_position_embeddings": 8192}' --max-model-len 8192 \
    --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}' \
    --gpu-memory-utilization 0.2 --enforce-eager >"$log" 2>&1 &
server=$!

echo "starting the judge's server on port $port"
deadline=$((SECONDS + 300))
until "$python" -c "import urllib.request
urllib.request.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; do
    if ! kill -0 "$server" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
        echo "error: the judge's server did not start; its last words:" >&2
        tail -n 20 "$log" >&2
        exit 3
    fi
    sleep 1
done

# The demo's terms, and the judge's beside them.
endings='[ですわ, ですわ。]'
terms="[{metric: all_of, of: [{metric: contains}, {metric: ends_with, endings: $endings}, {metric: ended}]},
    {metric: contains, weight: 0.1}, {metric: ends_with, endings: $endings, weight: 0.1},
    {metric: judge, rubric: judge.yaml, weight: 0.2}]"
judge="{model: demo-judge, base_url: 'http://127.0.0.1:$port/v1', temperature: 1.0, max_concurrency: 24,
    max_reply_retries: 5, timeout_seconds: 600}"

"$python" -c 'from evolve.cli import main; main()' demo --name demo-judged \
    --set "fitness.terms=$terms" --set "fitness.judge=$judge" \
    --set prompts.search_limit=8 --set prompts.validation_limit=8 --set budget.max_fevals=16 \
    --set workers.gpu_memory_utilization=0.5 "$@"
