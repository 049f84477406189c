#!/usr/bin/env bash
# The test suite, a process a core, about two minutes on two. Extra arguments go to pytest: --slow for the full-size
# checks too (five to six minutes), --long for every case and many more kills, -n 0 for one process (to debug).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export OMP_NUM_THREADS=1  # or the processes would fight over the cores
unset PYTHONDONTWRITEBYTECODE  # or each of the many processes would compile the modules anew
# Whole files, since some share a fixture that takes long, in the order of tests/conftest.py: the longest first.
exec "$python" -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@" tests
