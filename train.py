"""Training: one run of one network, its checkpoints and its accuracy logs.

Either the readout alone is trained on fixed features, which the conjugate kernel describes, or every weight, which the
neural tangent kernel describes; a DEQ's gradient is then implicit. The code lives in `deq_enn/training/`.
"""

from deq_enn.reporting.records import read_metrics
from deq_enn.training.learning_rate import choose_rate
from deq_enn.training.loop import FullTask, PcDEQTask, ReadoutTask, TrainingError, extract_features, run
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
