#!/usr/bin/env bash
# Every kernel figure of the paper (nine scripts of ck_ntk/) at its sizes, into results/figures; flags go to each script.
#   scripts/figures.sh [--dataset_path DIR] [--sigma_a2 S] [--output DIR] ...
# --dataset_path (default data) is where MNIST lies; without it there the MNIST figures are skipped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

data=data
flags=()
while (($#)); do
    case $1 in
        --dataset_path) data=${2:?--dataset_path needs a folder}; shift 2 ;;
        --dataset_path=*) data=${1#*=}; shift ;;
        *) flags+=("$1"); shift ;;
    esac
done

for name in ck_gmm_matching gmm_ntk_matching gmm_one_layer_matching gmm_two_layer_relu_matching finite_width; do
    "$python" "ck_ntk/$name.py" "${flags[@]}"
done

if [[ ! -e $data/MNIST/raw/train-images-idx3-ubyte && ! -e $data/train-images-idx3-ubyte ]]; then
    echo "the four MNIST figures are skipped: no train-images-idx3-ubyte in $data or $data/MNIST/raw (--dataset_path)"
    exit 0
fi
for name in ck_mnist_matching mnist_ntk_matching mnist_one_layer_matching mnist_two_layer_matching; do
    "$python" "ck_ntk/$name.py" --dataset_path "$data" "${flags[@]}"
done
