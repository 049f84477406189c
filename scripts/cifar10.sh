#!/usr/bin/env bash
# The paper's sweep on cifar10: five widths, six networks, 100 epochs. OPT=sgd|adam, LR=..., PROCESSES=K; extra
# flags go to main.py.
set -euo pipefail
dataset=cifar10
declare -A default_lr=([sgd]=0.1 [adam]=0.001)
. "$(dirname "${BASH_SOURCE[0]}")/sweep.sh"
