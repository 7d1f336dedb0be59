#!/usr/bin/env bash
# Checks, measures and records on a GPU: one command, resumable, in pieces that end well within ten minutes each.
#   benchmarks/gpu.sh --out runs/gpu --data-dir DATA     goes on where the last call stopped; README.md tells more
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"  # this checkout, installed or not
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
