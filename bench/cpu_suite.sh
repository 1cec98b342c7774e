#!/usr/bin/env bash
# Every benchmark that needs no GPU, in one call; about 40 minutes on two cores.
#   bash bench/cpu_suite.sh OUT FOLDER [DICOMS]
# Writes OUT/*.json, one a command. FOLDER holds X-rays to screen, DICOMS those whose transfer
# syntaxes are timed. Needs comit with its extras cpu, train and bench. Nothing else should run
# meanwhile: what other programs took of the machine is in the figures, `load` hints at it.
set -uo pipefail
out=${1:?folder for results} xrays=${2:?folder of X-rays} dicoms=${3:-}
mkdir -p "$out"

bench() { # NAME ARGUMENTS...
  local name=$1; shift
  echo "== $name: comit bench $*"
  python -m comit bench "$@" --json "$out/$name.json" || echo "== $name failed" >&2
}

bench latency latency --batch-size 1 --batch-size 4 --batch-size 8 --batch-size 64 --batch-size 256 --calls 8
bench latency-full latency --width 1 --batch-size 1 --batch-size 4 --batch-size 8 --batch-size 64 --calls 4

for kind in png jpeg dicom; do
  bench throughput-$kind throughput --generate $kind --images 1500
done
bench throughput-jpeg-lossless throughput --generate jpeg-lossless --images 600
bench throughput-jpeg2000 throughput --generate jpeg2000 --files 8 --images 64 --repeat 2
for kind in png dicom; do
  bench throughput-$kind-full throughput --width 1 --generate $kind --images 300 --repeat 2
done
bench throughput-jpeg-lossless-full throughput --width 1 --generate jpeg-lossless --images 200 --repeat 2
bench throughput-cold throughput --generate dicom --files 200 --images 200 --cold --repeat 2
bench throughput-long throughput "$xrays" --images 5000 --repeat 1
bench sweep throughput --generate png --images 400 --repeat 1 --sweep

peers=(--peer loader2-openvino-bf16 --peer loader2-openvino-fp32 --peer loader2-torch-bf16
       --peer loader2-torch-fp32 --peer loader2-onnxruntime-fp32)
for kind in png dicom jpeg-lossless; do
  bench compare-$kind compare --generate $kind --images 480 --repeat 3 "${peers[@]}"
done
bench compare-png-full compare --width 1 --generate png --images 160 --repeat 2 --peer loader2-openvino-bf16 --peer loader2-torch-bf16
bench compare-others compare --generate dicom --images 96 --repeat 2 --peer plain-loop --peer monai --peer ray --peer torchxrayvision

[ -n "$dicoms" ] && bench decode decode "$dicoms"
bench flagged flagged "$xrays"
bench memory memory "$xrays" --rows 1000 --rows 5000
bench memory-null memory "$xrays" --null --rows 1000 --rows 10000 --rows 100000
