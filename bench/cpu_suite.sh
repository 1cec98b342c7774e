#!/usr/bin/env bash
# Every benchmark that needs no GPU, in one call; an hour and three quarters on two cores.
#   bash bench/cpu_suite.sh [--tiny] OUT FOLDER [DICOMS]
# Writes OUT/*.json, one a command. FOLDER holds X-rays to screen, DICOMS those whose transfer
# syntaxes are timed. Needs comit with its extras cpu, train and bench. Nothing else should run
# meanwhile: what other programs took of the machine is in the figures, `load` hints at it.
# What failed, and peers that were not run, are named at the end; exit code 1 where anything failed.
# --tiny runs the commands on a few small files, to see that each runs: its figures mean nothing. Of
# lines that differ only by kind or width it runs one.
set -uo pipefail
tiny=
[ "${1:-}" = --tiny ] && tiny=1 && shift
out=${1:?folder for results} xrays=${2:?folder of X-rays} dicoms=${3:-}
mkdir -p "$out"
failed=() absent=()
sizes=(1 4 8 64 256) full=(1 4 8 64) rows=(1000 5000) null=(1000 10000 100000)
compared=(png dicom jpeg-lossless)
[ -n "$tiny" ] && sizes=(1 2) full=(1 2) rows=(2 10) null=(2 10 20) compared=(png)

smaller() { # ARGUMENTS...: prints what makes them tiny; of an option given twice the last counts
  case $1 in
    latency) echo --calls 2 --seconds 0.05 ;;
    throughput) echo --side 256 --files 4 --images 4 --repeat 1 --seconds 0.05 ;;
    compare) echo --side 256 --files 4 --images 12 --repeat 1 ;;
    decode) echo --repeat 1 ;;
    flagged) echo --share 0.3 --repeat 1 ;;
  esac
  [[ " $* " == *" --width 1 "* ]] && echo --width 0.0625
}

bench() { # NAME ARGUMENTS...
  local name=$1 note; shift
  [[ -n $tiny && $name == *-full && $name != latency-full ]] && return
  [ -n "$tiny" ] && set -- "$@" $(smaller "$@")
  echo "== $name: comit bench $*"
  rm -f "$out/$name.json"
  python -m comit bench "$@" --json "$out/$name.json" || { failed+=("$name"); return; }
  while IFS= read -r note; do
    case $note in
      *": failed: "*) failed+=("$name: $note") ;;
      *) absent+=("$name: $note") ;;
    esac
  done < <(awk -F '"' '$2 == "peer" {peer = $4} $2 == "note" && $4 {print peer ": " $4}' "$out/$name.json")
}

precisions=$(python -c 'from comit.bench.compare import possible
from comit.card import BUNDLED
print(*possible(BUNDLED))') || failed+=("precisions of this CPU")

bench latency latency "${sizes[@]/#/--batch-size=}" --calls 10
bench latency-full latency --width 1 "${full[@]/#/--batch-size=}" --calls 4

for kind in png jpeg dicom; do
  bench throughput-$kind throughput --generate $kind --images 1500
done
for precision in $precisions; do # the last is the default of this CPU
  bench throughput-png-$precision throughput --precision $precision --generate png --images 500
done
bench throughput-jpeg-lossless throughput --generate jpeg-lossless --images 600
bench throughput-jpeg2000 throughput --generate jpeg2000 --files 8 --images 64 --repeat 2
for kind in png jpeg dicom; do
  bench throughput-$kind-full throughput --width 1 --generate $kind --images 300 --repeat 2
done
bench throughput-jpeg-lossless-full throughput --width 1 --generate jpeg-lossless --images 200 --repeat 2
bench throughput-jpeg2000-full throughput --width 1 --generate jpeg2000 --files 8 --images 64 --repeat 1
bench throughput-no-masks throughput --masks none --generate png --images 1500
bench throughput-cold throughput --generate dicom --files 200 --images 200 --cold --repeat 2
bench throughput-long throughput "$xrays" --images 5000 --repeat 1
bench sweep throughput --generate png --images 400 --repeat 1 --sweep

peers=(--peer loader2-openvino-bf16 --peer loader2-openvino-fp32 --peer loader2-torch-bf16
       --peer loader2-torch-fp32 --peer loader2-onnxruntime-fp32)
for kind in "${compared[@]}"; do
  bench compare-$kind compare --generate $kind --images 480 --repeat 3 "${peers[@]}"
done
bench compare-png-full compare --width 1 --generate png --images 160 --repeat 2 --peer loader2-openvino-bf16 --peer loader2-torch-bf16
bench compare-others compare --generate dicom --images 96 --repeat 2 --peer plain-loop --peer monai --peer ray --peer torchxrayvision

[ -n "$dicoms" ] && bench decode decode "$dicoms"
bench flagged flagged "$xrays"
bench memory memory "$xrays" "${rows[@]/#/--rows=}"
bench memory-null memory "$xrays" --null "${null[@]/#/--rows=}"

if ((${#absent[@]})); then printf 'peer not run: %s\n' "${absent[@]}"; fi
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "all ran"
