"""Training: one run of one network, with its checkpoints and its accuracy logs.

Either the readout alone is trained on features that do not change, which is the regime that the conjugate kernel
describes. Or every weight is trained, which the neural tangent kernel describes; the gradient of a DEQ is then
implicit, that of its equilibrium and not of the steps that found it. `run` trains one network and writes its files.

The code lives in `deq_enn/training/`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":
    raise SystemExit("train.py has names to import; networks are trained by main.py: python main.py --help")

from deq_enn.reporting.records import read_metrics
from deq_enn.training.learning_rate import choose_rate
from deq_enn.training.loop import FullTask, PcDEQTask, TrainingError, run
from deq_enn.training.readout import ReadoutTask, extract_features
from deq_enn.training.run_files import Config, Result

__all__ = [
    "Config",
    "FullTask",
    "PcDEQTask",
    "ReadoutTask",
    "Result",
    "TrainingError",
    "choose_rate",
    "extract_features",
    "read_metrics",
    "run",
]
