"""The gateway to all experiments: flags in; accuracy logs, a table and a figure out.

    python main.py                                                   the six networks on a Gaussian mixture
    python main.py --dataset mnist --model l_relu_enn --dim 1024     one network on MNIST
    python main.py --model deq matched_enn --activation swish        any DEQ, and the explicit network that matches it
    python main.py --dataset mnist --model linear_pcdeq_1            a positive concave DEQ on MNIST

The program itself lives in `deq_enn/experiments/command.py`; `python -m deq_enn run` is the same.
"""

from deq_enn.utils import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()

from deq_enn.experiments.command import main

__all__ = ["main"]

if __name__ == "__main__":
    try:
        main()
    finally:
        interrupts.ignore()
