#!/usr/bin/env bash
# Training speed and peak memory, ours and PyTorch's in turn: one JSON line each, then how they compare.
# Usage: benches/train.sh [--seconds 15] [--batch 16] [--length 128] [--threads N] [--tunings "full lora"] [--dtypes "f32 bf16"]
# PYTHON names an interpreter with torch, transformers and peft. Compare figures of one run only, taken while nothing else runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
peers=${PEERS:-../shared/peers}
seconds=15 batch=16 length=128 threads=$(nproc) tunings="full lora" dtypes="f32 bf16"
while (($#)); do
  [[ $# -ge 2 ]] || { echo "$1 needs a value" >&2; exit 2; }
  case $1 in
    --seconds) seconds=$2 ;; --batch) batch=$2 ;; --length) length=$2 ;; --threads) threads=$2 ;;
    --tunings) tunings=$2 ;; --dtypes) dtypes=$2 ;;
    *) echo "unknown flag $1: see the first lines of $0" >&2; exit 2 ;;
  esac
  shift 2
done
cargo build --release -q -p tunesmith-ml --example train_encoder
model=$(cargo run --release -q -- pull all-minilm-l6-v2 | sed -n 's/^all-minilm-l6-v2: //p')

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
peer=yes
if [[ ! -f $peers/train_encoder.py ]]; then
  echo "no $peers/train_encoder.py: only ours is measured" >&2
  peer=no
elif ! "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
  echo "$python has no torch, transformers or peft: only ours is measured (PYTHON names another)" >&2
  peer=no
fi

for tuning in $tunings; do
  for dtype in $dtypes; do
    flags=(--tuning "$tuning" --dtype "$dtype" --batch "$batch" --length "$length" --threads "$threads" --seconds "$seconds")
    target/release/examples/train_encoder --model "$model" "${flags[@]}" | tee -a "$lines"
    if [[ $peer == yes ]]; then
      "$python" "$peers/train_encoder.py" "${flags[@]}" 2>/dev/null | tee -a "$lines"
    fi
  done
done

if [[ $peer == yes ]]; then
  "$python" benches/compare.py <"$lines"
fi
