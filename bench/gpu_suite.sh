#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one call:
#   bash bench/gpu_suite.sh [FOLDER OF X-RAYS] [FOLDER OF WHEELS] [FOLDER FOR RESULTS] [MINUTES]
# For a bare machine without a network: wheels (and pycuda's source) that it lacks are installed
# from the second folder, into a temporary one. Writes <date>-<gpu>.json and .md, pytest's output
# and what was installed to the third, bench/results if none is given: whole after each part, so
# that a call which is cut off keeps what it measured. MINUTES, 9, bound the benchmarks alone. Goes
# on after a failure; what could not run is named with its reason. Exits 0 only where nothing failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$gpu" ]; then
  echo "gpu_suite: no NVIDIA GPU on this machine (nvidia-smi lists none); nothing was run" >&2
  exit 1
fi
data=${1:-${COMIT_TEST_DATA:-../shared}/cxr/images}
wheels=${2:-}
results=${3:-bench/results}
out=$results/$(date -u +%Y-%m-%d)-$(tr -cs 'A-Za-z0-9\n' '-' <<<"$gpu")
mkdir -p "$results"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
failed=0

if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  export PYTHONPATH=$site:$PYTHONPATH
  for file in "$wheels"/*.whl "$wheels"/*.tar.gz; do
    [ -e "$file" ] || continue
    # One at a time: what does not install keeps nothing else from being measured.
    if timeout 240 python3 -m pip install --quiet --no-index --no-deps --no-build-isolation \
      --no-compile --no-cache-dir --upgrade --target "$site" "$file" >"$site/pip.log" 2>&1; then
      echo "installed $(basename "$file")"
    else
      echo "NOT INSTALLED $(basename "$file"): $(grep -m 1 -i error "$site/pip.log")"
    fi
  done | tee "$out-wheels.log"
fi

echo "== tests"
python3 -m pytest tests/test_gpu.py -q -W default -p no:cacheprovider 2>&1 | tee "$out-pytest.log" | tail -n 25
code=${PIPESTATUS[0]}
[ "$code" -eq 0 ] || failed=1

for tool in memcheck racecheck; do
  echo "== kernels under compute-sanitizer's $tool"
  if ! command -v compute-sanitizer >/dev/null; then
    echo "not run: compute-sanitizer is not here"
    continue
  fi
  timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    python3 -m pytest tests/test_gpu.py -q -W default -p no:cacheprovider -k "cpus or cocos" \
    >"$out-$tool.log" 2>&1
  code=$?
  tail -n 3 "$out-$tool.log"
  case $code in
    0) ;;
    124) echo "not finished: it took longer than 150 s" ;;
    *) failed=1 ;;
  esac
done

echo "== benchmarks"
arguments=(--out "$out" --device cuda:0 --minutes "${4:-9}")
if [ -d "$data" ]; then
  arguments+=(--data "$data")
else
  echo "gpu_suite: $data is not there; parity is on drawings alone"
fi
python3 -m comit bench gpu "${arguments[@]}" || failed=1

echo "== $out.md"
exit "$failed"
