#!/usr/bin/env bash
# A language model's generation and training, ours and the peers' in turn (llama.cpp on the same GGUF file; PyTorch with PEFT, bf16): one
# JSON line each, then how they compare.
# Usage: benches/decoder.sh [--seconds 10] [--turns 3] [--threads N] [--tunings "lora full"] [--parts "generate train"]
# PYTHON names an interpreter with torch, transformers, peft and gguf, LLAMA_PYTHON one with llama-cpp-python (default: PYTHON).
# Compare figures of one run only, taken while nothing else runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
llama_python=${LLAMA_PYTHON:-$python}
peers=${PEERS:-../shared/peers}
seconds=10 turns=3 threads=$(nproc) tunings="lora full" parts="generate train"
while (($#)); do
  [[ $# -ge 2 ]] || { echo "$1 needs a value" >&2; exit 2; }
  case $1 in
    --seconds) seconds=$2 ;; --turns) turns=$2 ;; --threads) threads=$2 ;; --tunings) tunings=$2 ;; --parts) parts=$2 ;;
    *) echo "unknown flag $1: see the first lines of $0" >&2; exit 2 ;;
  esac
  shift 2
done
cargo build --release -q -p tunesmith-ml --example generate --example train_causal
model=${MODEL:-$(cargo run --release -q -- pull smollm2-135m-instruct | sed -n 's/^smollm2-135m-instruct: //p')}
# As the server sets it for its workers.
export MIMALLOC_PURGE_DELAY=10000

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
has() { # script, interpreter, modules
  [[ -f $peers/$1 ]] && "$2" -c "import $3" 2>/dev/null && return
  echo "no $peers/$1, or $2 has not all of $3: only ours is measured" >&2
  return 1
}
llama=no torch=no
[[ $parts == *generate* ]] && has generate_llamacpp.py "$llama_python" llama_cpp && llama=yes
[[ $parts == *train* ]] && has train_causal.py "$python" torch,transformers,peft && torch=yes

for ((turn = 0; turn < turns; turn++)); do
  if [[ $parts == *generate* ]]; then
    target/release/examples/generate --model "$model" --threads "$threads" --seconds "$seconds" | tee -a "$lines"
    if [[ $llama == yes ]]; then
      "$llama_python" "$peers/generate_llamacpp.py" --threads "$threads" --seconds "$seconds" 2>/dev/null | tee -a "$lines"
    fi
  fi
  if [[ $parts == *train* ]]; then
    for tuning in $tunings; do
      target/release/examples/train_causal --model "$model" --tuning "$tuning" --threads "$threads" --seconds "$seconds" | tee -a "$lines"
      if [[ $torch == yes ]]; then
        "$python" "$peers/train_causal.py" --tuning "$tuning" --dtype bf16 --threads "$threads" --seconds "$seconds" 2>/dev/null | tee -a "$lines"
      fi
    done
  fi
done
"$python" benches/compare.py <"$lines"
