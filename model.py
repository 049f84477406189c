"""The networks of the paper as `torch.nn.Module`s, by the names that `main.py --model` takes.

`inn` and `tanh_inn` are the deep equilibrium models z = phi(sigma_a A z + sigma_b B x)/sqrt(m) of ReLU and of tanh.
`l_relu_enn` (two leaky-ReLU layers) and `h_tanh_enn` (one hard-tanh layer) are the explicit networks that match them.
`relu_enn` and `tanh_enn` are explicit networks of the DEQ's own activation that match nothing. `DEQ` and `matched_enn`
are the same for any activation. The code lives in `deq_enn/networks/`.
"""

from deq_enn.names import MODELS
from deq_enn.networks.build import build_model, matched_enn
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.pcdeq import PcDEQ, build_pcdeq

__all__ = ["DEQ", "ENN", "MODELS", "PcDEQ", "build_model", "build_pcdeq", "matched_enn"]
