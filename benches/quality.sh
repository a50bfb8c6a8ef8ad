#!/usr/bin/env bash
# Accuracy and F1 on AG News: ours over HTTP for three seeds, then PyTorch with the same settings. Flags: quality.py --help.
# PYTHON names an interpreter (with torch, transformers, peft and scikit-learn for the peer); TUNESMITH_BIN the binary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benches/quality.py "$@"
