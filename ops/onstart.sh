#!/usr/bin/env bash
# A template's onstart script (docs/operating.md, "A template"): it starts vLLM and its worker. Paste it into the template.
# An instance runs it at every boot. Variables of the template replace the values here.
set -uo pipefail

export BACKEND=${BACKEND:-vllm} # a folder of workers/
export MODEL_NAME=${MODEL_NAME:-Qwen/Qwen3-8B}
export MODEL_SERVER_URL=http://127.0.0.1:18000
export MODEL_LOG=${MODEL_LOG:-/var/log/portal/vllm.log}
script_url=${SCRIPT_URL:-https://raw.githubusercontent.com/vast-ai/pyworker/main/start_server.sh}

# The model server listens on loopback, since the worker checks who may use it. Its log is what the worker reads.
mkdir -p "${MODEL_LOG%/*}"
# shellcheck disable=SC2086 # VLLM_ARGS are several arguments
vllm serve "$MODEL_NAME" --host 127.0.0.1 --port 18000 ${VLLM_ARGS:-} >>"$MODEL_LOG" 2>&1 &

# The worker: it waits until the model is loaded, and tells the engine if the start fails.
curl -fsSL --retry 5 "$script_url" | bash
