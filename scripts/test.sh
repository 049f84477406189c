#!/usr/bin/env bash
# The whole test suite, on every core. Extra arguments go to pytest: --slow for the full-size checks too, -n 0 for one
# process (to debug).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" -m pytest -q -n auto --maxprocesses 8 --dist worksteal "$@" tests
