#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one call:
#   bash bench/gpu_suite.sh [FOLDER OF X-RAYS]
# Writes JSON, each with machine, versions and commit, and pytest's output to
# bench/results/<date>-<gpu>/. Goes on after a failure; exits 0 only where every step passed.
# An engine that is not installed is listed by name; at least one must have run on the GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$gpu" ]; then
  echo "gpu_suite: no NVIDIA GPU on this machine (nvidia-smi lists none); nothing was run" >&2
  exit 1
fi
data=${1:-${COMIT_TEST_DATA:-../shared}/cxr/images}
out=bench/results/$(date -u +%Y-%m-%d)-$(tr -cs 'A-Za-z0-9\n' '-' <<<"$gpu")
mkdir -p "$out"
failed=() absent=() ran=0

# step NAME COMMAND...: output to NAME.log; exit code 2 means that the engine is not here
step() {
  local name=$1 code
  shift
  echo "== $name"
  "$@" >"$out/$name.log" 2>&1
  code=$?
  tail -n 12 "$out/$name.log"
  case $code in
    0) ran=$((ran + 1)) ;;
    2) absent+=("$name") ;;
    *) failed+=("$name (exit $code)") ;;
  esac
}

echo "== tests"
python -m pytest -m gpu -q 2>&1 | tee "$out/pytest.log"
code=${PIPESTATUS[0]}
case $code in
  0) ;;
  5) echo "gpu_suite: no test is marked gpu yet" | tee -a "$out/pytest.log" ;;
  *) failed+=("tests (exit $code)") ;;
esac
for engine in tensorrt onnxruntime torch; do
  for precision in fp32 fp16; do
    options=(--engine "$engine" --device cuda:0 --precision "$precision")
    step "latency-$engine-$precision" python -m comit bench latency "${options[@]}" \
      --batch-size 1 --batch-size 16 --batch-size 64 --batch-size 256 \
      --json "$out/latency-$engine-$precision.json"
    if [ -e "$data" ]; then
      step "throughput-$engine-$precision" python -m comit bench throughput "$data" \
        "${options[@]}" --json "$out/throughput-$engine-$precision.json"
    fi
  done
done
[ -e "$data" ] || echo "gpu_suite: $data is not there; throughput was not measured"

echo "== $out: $ran benchmarks ran"
[ ${#absent[@]} -eq 0 ] || printf 'not possible here: %s\n' "${absent[@]}"
[ ${#failed[@]} -eq 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
if [ "$ran" -eq 0 ]; then
  echo "gpu_suite: no engine ran on $gpu; pip install 'comit[gpu]'" >&2
  exit 1
fi
[ ${#failed[@]} -eq 0 ]
