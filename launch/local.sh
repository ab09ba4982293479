#!/usr/bin/env bash
# Several processes on this machine: launch/local.sh PROCESSES --config=FILE --workdir=DIR ...
# With GPUs, process i gets the i-th one. Ctrl-C stops all of them.
set -euo pipefail
processes=${1:?usage: launch/local.sh PROCESSES --config=FILE --workdir=DIR ...}
shift
coordinator=127.0.0.1:${PORT:-$((20000 + RANDOM % 20000))}
trap 'kill 0' INT TERM
pids=()
for ((i = 0; i < processes; i++)); do
    devices=()
    if command -v nvidia-smi > /dev/null; then devices=(CUDA_VISIBLE_DEVICES="$i"); fi
    env "${devices[@]}" python3 -m jaxcls.main "$@" \
        --coordinator="$coordinator" --num_processes="$processes" --process_id="$i" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
