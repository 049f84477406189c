#!/usr/bin/env bash
# The paper's sweep on mnist: five widths, six networks, 100 epochs. OPT=sgd|adam, LR=..., PROCESSES=K; extra
# flags go to main.py.
set -euo pipefail
dataset=mnist
declare -A default_lr=([sgd]=1 [adam]=0.001)
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
