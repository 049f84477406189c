# Sourced by mnist.sh, fashion_mnist.sh and cifar10.sh: the paper's sweep of $dataset over widths and networks.
#   OPT=sgd|adam   optimizer (default sgd)      LR   learning rate (default: the dataset's)
#   PROCESSES=K    share the runs of the grid (default 1); the logs are the same, on K cores sooner
# Extra flags go to main.py, so that --resume, --seed 0 1 2 or --dataset_path DIR do what they say.
if [ -z "${dataset:-}" ]; then
    echo "sweep.sh is shared by the sweeps: run scripts/mnist.sh, fashion_mnist.sh or cifar10.sh" >&2
    exit 2
fi
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
opt=${OPT:-sgd}
exec "$python" main.py --dataset "$dataset" --dim 32 128 256 1024 4096 --epoch 100 --opt "$opt" --lr "${LR:-${default_lr[$opt]:-1}}" \
    ${PROCESSES:+--processes "$PROCESSES"} --output_path "results/$dataset-$opt" --save_path "checkpoints/$dataset-$opt" "$@"
