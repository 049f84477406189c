# Sourced by the other scripts: goes to the repository root and makes .venv with the requirements if it is not there.
# PYTHON names another interpreter to make it from (3.11 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
if ! cmp -s requirements.txt .venv/installed; then
    echo "making .venv and installing requirements.txt (once; torch is about 5 GB)" >&2
    "${PYTHON:-python3}" -m venv .venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed
fi
