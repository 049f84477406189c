#!/usr/bin/env bash
# A positive concave DEQ on SVHN at the published setting. MODEL and ACTIVATION name another one; extra flags go to
# main.py after those below, so that --resume, --epoch 5 or --dataset_path DIR do what they say.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
model=${MODEL:-single_conv_pcdeq_2} activation=${ACTIVATION:-sigmoid}
exec "$python" main.py --dataset svhn --model "$model" --activation "$activation" --lr 5e-4 --epoch 80 \
    --weight_decay 2e-2 --batch_size 64 --milestone 70 \
    --output_path "results/svhn-$model-$activation" --save_path "checkpoints/svhn-$model-$activation" "$@"
