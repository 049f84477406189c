#!/usr/bin/env bash
# The main job on the embedded Gaussian mixture, three seeds: a table, and a figure in results/demo. Extra flags go to
# main.py.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" main.py --seed 0 1 2 --output_path results/demo --save_path checkpoints/demo "$@"
