#!/usr/bin/env bash
# A positive concave DEQ on MNIST at the published setting. MODEL and ACTIVATION name another one; extra flags go to
# main.py after those below, so that --resume, --epoch 5 or --dataset_path DIR do what they say.
#   MODEL=linear_pcdeq_1 ACTIVATION=tanh scripts/pcdeq_mnist.sh --lr 7e-4 --epoch 50 --weight_decay 1e-2 --milestone 40
#   MODEL=linear_pcdeq_2 ACTIVATION=sigmoid scripts/pcdeq_mnist.sh --lr 7e-4 --epoch 50 --weight_decay 1e-2 --milestone 40
# (their rates, epochs and decay are the defaults of the published script, which leaves the milestone open)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
model=${MODEL:-multi_conv_pcdeq_1} activation=${ACTIVATION:-softsign}
exec "$python" main.py --dataset mnist --model "$model" --activation "$activation" --lr 5e-4 --epoch 40 \
    --weight_decay 1.5e-2 --batch_size 64 --milestone 30 \
    --output_path "results/mnist-$model-$activation" --save_path "checkpoints/mnist-$model-$activation" "$@"
