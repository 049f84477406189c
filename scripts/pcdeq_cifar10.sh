#!/usr/bin/env bash
# A positive concave DEQ on CIFAR-10 at the published setting. MODEL and ACTIVATION name another one; extra flags go to
# main.py after those below, so that --resume, --epoch 5 or --dataset_path DIR do what they say.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
model=${MODEL:-multi_conv_pcdeq_1} activation=${ACTIVATION:-relu6}
exec "$python" main.py --dataset cifar10 --model "$model" --activation "$activation" --lr 5e-4 --epoch 120 \
    --weight_decay 2e-2 --batch_size 64 --milestone 100 --aug \
    --output_path "results/cifar10-$model-$activation" --save_path "checkpoints/cifar10-$model-$activation" "$@"
