"""This is the gateway to all experiments: flags go in; accuracy logs, a table and a figure come out.

    python main.py                                                   the six networks on a Gaussian mixture
    python main.py --dataset mnist --model l_relu_enn --dim 1024     one network on MNIST
    python main.py --model deq matched_enn --activation swish        any DEQ, and the explicit network that matches it
    python main.py --dataset mnist --model linear_pcdeq_1            a positive concave DEQ on MNIST

The program itself lives in `deq_enn/experiments/command.py`; `python -m deq_enn run` is the same.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

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
