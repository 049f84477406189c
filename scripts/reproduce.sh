#!/usr/bin/env bash
# The whole paper into results/report.html and report.md: every kernel figure, accuracy sweeps with SGD, with Adam and
# at own learning rates, networks with every weight trained, positive concave DEQs. Hours, of which it tells first.
#   scripts/reproduce.sh [--quick] [--dataset_path DIR] [--output_path DIR] [--processes K]
# Stopped at any point, the same command goes on from there. Data that is not there is skipped, with its reason.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" scripts/reproduce.py "$@"
