#!/usr/bin/env bash
# The whole paper into results/report.html and report.md: accuracy sweeps with SGD and Adam, and every kernel figure.
#   scripts/reproduce.sh [--quick] [--dataset_path DIR] [--output_path DIR] [--processes K]
# Stopped at any point, the same command goes on from there. Data that is not there is skipped, with its reason.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" scripts/reproduce.py "$@"
