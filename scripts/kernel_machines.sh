#!/usr/bin/env bash
# "Matched, unmatched, or plain?" at infinite width: kernel_machines.sh DATASET ACTIVATION [flags of main.py].
# The DEQ, its match and unmatched networks of depth 1 to 3 as kernel machines (conjugate and tangent kernel), the same
# networks of width 64 to 4096 with their exact readout, and the table. What is finished is not made again.
#   WIDTHS="64 256"   other widths; WIDTHS="" none
#   RIDGE_SIZE=8000   training samples that choose the ridge of a kernel (a third by default, or 8000 where that is more)
set -euo pipefail
if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
elif (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then
    echo "kernel_machines.sh: error: give DATASET ACTIVATION, such as mnist relu, and then flags of main.py" >&2
    exit 2
fi
dataset=$1 activation=$2
shift 2
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
folder=results/kernels-$dataset-$activation flags=()
while (($#)); do
    case $1 in
        --output_path) (($# > 1)) || { echo "kernel_machines.sh: error: $1 needs a folder" >&2; exit 2; }
            folder=$2; shift 2 ;;
        --output_path=*) folder=${1#*=}; shift ;;
        *) flags+=("$1"); shift ;;
    esac
done
common=(--dataset "$dataset" --model deq matched_enn unmatched_enn --activation "$activation" --depth 1 2 3 --resume
        --output_path "$folder" --save_path "checkpoints/kernels-$dataset-$activation")
for kernel in ck ntk; do
    "$python" main.py --train kernel --match "$kernel" ${RIDGE_SIZE:+--ridge_size "$RIDGE_SIZE"} "${common[@]}" "${flags[@]}"
done
if [[ -n ${WIDTHS-all} ]]; then
    # shellcheck disable=SC2086
    "$python" main.py --train ridge --dim ${WIDTHS:-64 128 256 512 1024 2048 4096} "${common[@]}" "${flags[@]}"
fi
"$python" scripts/kernel_table.py "$folder" | tee "$folder/table.md"
