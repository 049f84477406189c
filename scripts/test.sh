#!/usr/bin/env bash
# The whole test suite. Extra arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" -m pytest -q "$@" tests
