"""The networks of the paper as `torch.nn.Module`s, by the names that `main.py --model` takes.

    inn, tanh_inn            the deep equilibrium models z = phi(sigma_a A z + sigma_b B x)/sqrt(m) of ReLU and of tanh
    l_relu_enn, h_tanh_enn   explicit networks that match them: two leaky-ReLU layers, and one hard-tanh layer
    relu_enn, tanh_enn       explicit networks of the DEQ's own activation, which match nothing: the paper's baselines

`build_model` makes any of them by name. `DEQ` and `matched_enn` are the same for any activation, and `build_pcdeq`
makes the positive concave DEQs of Gabor et al. (ICML 2024). The code lives in `deq_enn/networks/`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":
    raise SystemExit("model.py has names to import; networks are built and trained by main.py: python main.py --help")

from deq_enn.names import MODELS
from deq_enn.networks.build import build_model, matched_enn
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.pcdeq import PcDEQ, build_pcdeq

__all__ = ["DEQ", "ENN", "MODELS", "PcDEQ", "build_model", "build_pcdeq", "matched_enn"]
