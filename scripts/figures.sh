#!/usr/bin/env bash
# Every kernel figure of the paper (nine scripts of ck_ntk/) at its sizes, those of any DEQ's match, that of trained
# DEQs stopped after k steps, and the three of convolutional DEQs, into results/figures; flags go to each script, but
# matching_map, steps and those of convolutional DEQs take --output_path alone (and --dataset_path, where they have
# images), and --n is not for finite_width_kernels, which has one size.
#   scripts/figures.sh [--dataset_path DIR] [--asquare S] [--output_path DIR] ...
# --dataset_path (default data) is where MNIST and CIFAR-10 lie; figures of what is not there are skipped. Accuracies of
# every DEQ and its match are 168 trainings, half an hour, which are left to
#   python ck_ntk/any_activation_matching.py --dataset_path DIR
set -euo pipefail
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
fi
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

needs_folder() {
    if (($# < 2)); then
        echo "figures.sh: error: $1 needs a folder" >&2
        exit 2
    fi
}
data=data
flags=() sizes=() output=()
while (($#)); do
    case $1 in
        --dataset_path) needs_folder "$@"; data=$2; shift 2 ;;
        --dataset_path=*) data=${1#*=}; shift ;;
        --n) sizes=(--n); shift; while [[ ${1-} =~ ^[0-9]+$ ]]; do sizes+=("$1"); shift; done ;;
        --n=*) sizes=("$1"); shift ;;
        --output_path) needs_folder "$@"; output=(--output_path "$2"); shift 2 ;;
        --output_path=*) output=("$1"); shift ;;
        --output | --output=*)  # old spellings: said once here, and not by every script
            echo "figures.sh: --output is now --output_path" >&2
            set -- "--output_path${1#--output}" "${@:2}" ;;
        --sigma_a2 | --sigma_a2=*)
            echo "figures.sh: --sigma_a2 is now --asquare" >&2
            set -- "--asquare${1#--sigma_a2}" "${@:2}" ;;
        *) flags+=("$1"); shift ;;
    esac
done

for name in ck_gmm_matching gmm_ntk_matching gmm_one_layer_matching gmm_two_layer_relu_matching any_activation_matching
do
    "$python" "ck_ntk/$name.py" "${sizes[@]}" "${flags[@]}" "${output[@]}"
done
"$python" ck_ntk/finite_width_kernels.py "${flags[@]}" "${output[@]}"
"$python" ck_ntk/matching_map.py "${output[@]}"
"$python" ck_ntk/conv_mixture.py "${output[@]}"

images() {  # whether one of the folders has the training images, packed or not, as deq_enn/data/images.py looks for them
    local place
    for place; do
        if compgen -G "$data/$place/train-images[-.]idx3-ubyte*" >/dev/null; then return; fi
    done
    return 1
}
if images MNIST/raw MNIST raw .; then
    for name in ck_mnist_matching mnist_ntk_matching mnist_one_layer_matching mnist_two_layer_matching; do
        "$python" "ck_ntk/$name.py" --dataset_path "$data" "${sizes[@]}" "${flags[@]}" "${output[@]}"
    done
    "$python" ck_ntk/steps.py --dataset_path "$data" "${output[@]}"
    "$python" ck_ntk/resolvent_network.py --dataset_path "$data" "${output[@]}"
    others=()
    if images FashionMNIST/raw FashionMNIST; then others+=(fashion_mnist); fi
    [[ ! -d $data/cifar10 && ! -d $data/cifar-10-batches-py ]] || others+=(cifar10_images)
    "$python" ck_ntk/conv_matching.py --dataset_path "$data" --dataset mnist "${others[@]}" mixture "${output[@]}"
else
    echo "the seven MNIST figures are skipped: no train-images-idx3-ubyte in $data or $data/MNIST/raw (--dataset_path)"
fi
if [[ -d $data/cifar10 || -d $data/cifar-10-batches-py ]]; then
    "$python" ck_ntk/cifar10_matching.py --dataset_path "$data" "${sizes[@]}" "${flags[@]}" "${output[@]}"
else
    echo "the CIFAR-10 figure is skipped: neither cifar10 nor cifar-10-batches-py in $data (--dataset_path)"
fi
