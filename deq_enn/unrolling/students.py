"""Few-step networks are made of the module itself here: its readout refitted, its weights trained on what it says.

Three ways, from cheap to dear:

- *refitted*: the last linear layer of the stopped module is solved for anew, by ridge regression on the module's own
  outputs; everything before it stays as it is;
- *distilled*: from there, as an explicit, weight-tied network of k steps, all weights are trained so that the outputs
  are the module's (mean squared error, relative to their spread);
- *consistent*: the same, and from wherever the module's iteration has come to after j steps, k steps are to lead to the
  same outputs, and to those from the next point of the iteration (Lin, Ling, Xu & Qiu, Consistency Deep Equilibrium
  Models, arXiv 2602.03024, whose local and global losses these are).
"""

import copy
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from deq_enn.networks.trained_deq import evaluating
from deq_enn.unrolling.judged import Part, device_of, outputs_of, scores
from deq_enn.unrolling.steppers import Steps, Unrolled, stopped, unrolled_parts
from deq_enn.unrolling.training import Trained, train
from deq_enn.utils.deadline import check
from deq_enn.utils.random import generator

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)  # multiples of the features' mean square that are tried
REFITTED_ON = 5_000  # samples that a last layer is solved on, at most
FARTHEST = 6  # steps along the iteration from which a consistent student starts, at most


# ---------------------------------------------------------------------------------------------------------------
# the last linear layer


def last_linear(module: nn.Module, x: torch.Tensor) -> str | None:
    """Returns the name of the linear layer whose outputs are the module's, on rows x (n, ...), or None.

    A layer that is called more than once in a pass does not count: it has other work than to make the outputs.
    """
    said: defaultdict[str, list[torch.Tensor]] = defaultdict(list)

    def keep(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: said[name].append(output.clone())  # it may be changed in place

    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    hooks = [part.register_forward_hook(keep(name)) for name, part in linear.items()]
    try:
        with evaluating(module):
            outputs = scores(module(x.to(device_of(module))))
    finally:
        for hook in hooks:
            hook.remove()
    single = outputs.shape[1] == 2 and not outputs[:, 0].any()  # a score of the second class, against 0
    wanted = [outputs, outputs[:, 1:]] if single else [outputs]
    once = {name: calls[0] for name, calls in said.items() if len(calls) == 1}
    same = [name for name, output in once.items() if any(torch.equal(output, each) for each in wanted)]
    return same[-1] if same else None


def features_of(module: nn.Module, layer: str, X: torch.Tensor) -> torch.Tensor:
    """Returns what a layer, given by its name, is handed for samples X (n, ...): (n, m), float64 on the CPU."""
    features: list[torch.Tensor] = []

    def keep(part: nn.Module, args: tuple, named: dict) -> None:
        features.append((args[0] if args else named["input"]).detach().double().cpu())

    hook = module.get_submodule(layer).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        outputs_of(module, X)
    finally:
        hook.remove()
    return torch.cat(features)


def refitted(network: nn.Module, layer: str, fit: Part, choose: Part) -> nn.Module:
    """Solves the named layer of a stopped network for the module's outputs at `fit`, the ridge chosen on `choose`.

    The network is changed, so its weights must be copies; it is returned. The layer keeps its bias, or goes without
    one as before. A layer whose weight is computed, as by weight norm, is replaced by a plain one.
    """
    linear = network.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    F, F_choose = (features_of(network, layer, part.X) for part in (fit, choose))
    T, T_choose = (part.outputs[:, -linear.out_features :].double() for part in (fit, choose))
    centre, mean = (part.mean(0) if linear.bias is not None else torch.zeros_like(part[0]) for part in (F, T))
    moment, cross = (F - centre).T @ (F - centre), (F - centre).T @ (T - mean)
    unit = moment.diagonal().mean().clamp_min(1e-300)
    best = None
    for ridge in RIDGES:
        root, failed = torch.linalg.cholesky_ex(
            moment + ridge * unit * torch.eye(len(moment)).to(moment), check_errors=False
        )
        if failed:
            continue
        weights = torch.cholesky_solve(cross, root)
        error = ((F_choose - centre) @ weights + mean - T_choose).square().mean().item()
        if best is None or error < best[0]:
            best = error, weights
    if best is None:
        raise ValueError("its features are singular at every ridge")
    linear = _plain(network, layer, linear)
    with torch.no_grad():
        linear.weight.copy_(best[1].T)
        if linear.bias is not None:
            linear.bias.copy_(mean - centre @ best[1])
    return network


def _plain(network: nn.Module, layer: str, linear: nn.Linear) -> nn.Linear:
    """Returns the network's layer, or a plain one put into its place where its weight or bias is computed."""
    wanted = {"weight"} if linear.bias is None else {"weight", "bias"}
    if wanted <= dict(linear.named_parameters(recurse=False)).keys():
        return linear
    sizes = linear.in_features, linear.out_features, linear.bias is not None
    plain = nn.Linear(*sizes, device=linear.weight.device, dtype=linear.weight.dtype).train(linear.training)
    network.set_submodule(layer, plain)
    return plain


# ---------------------------------------------------------------------------------------------------------------
# all weights


class _Distance:
    """This is the mean squared difference of scores from the module's, in units of the mean square of their spread."""

    def __init__(self, fit: Part):
        self.unit = (fit.outputs - fit.outputs.mean(0)).square().mean().clamp_min(1e-12)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.float() - targets).square().mean() / self.unit.to(outputs.device)


def distilled(
    module: nn.Module,
    k: int,
    fit: Part,
    choose: Part,
    *,
    seconds: float,
    clock: Callable[[], float],
    seed: int = 0,
    steps: Steps | None = None,
    layer: str | None = None,
    consistent: bool = False,
) -> Trained:
    """Returns the module stopped after k steps, all its weights trained on the module's own outputs.

    Parameters
    ----------
    fit, choose : samples to train on, and to choose the rate by.
    layer : name of the last linear layer, of `last_linear`, which is refitted before; None leaves it.
    consistent : whether to train along the module's iteration too, as the head of this file says.

    Raises
    ------
    ValueError : `consistent`, and the user's own `steps` do not say where the iteration is; or an equilibrium that is
        solved more than once in a pass.
    """
    distance = _Distance(fit)
    initial = stopped(module, k, steps, shared=False)
    if consistent:
        _check_iteration(initial, fit.X[:2])
    if layer is not None:
        initial = refitted(initial, layer, fit.first(REFITTED_ON), choose)
    trajectory = _Trajectory(module, fit.X, seed) if consistent else None

    def objective(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        x, targets = fit.X[rows].to(device_of(network)), fit.outputs[rows].to(device_of(network))
        if trajectory is None:
            return distance(scores(network(x)), targets)
        return trajectory.loss(network, x, targets, distance)

    def score(network: nn.Module) -> float:
        return distance(outputs_of(network, choose.X), choose.outputs).item()

    return train(lambda: copy.deepcopy(initial), objective, score, len(fit), seconds=seconds, clock=clock, seed=seed)


def _check_iteration(network: nn.Module, x: torch.Tensor) -> None:
    """Refuses a network whose states cannot be set, or that solves one equilibrium several times a pass."""
    parts = unrolled_parts(network)
    if not parts:
        raise ValueError("steps= does not say where the iteration is")
    for part in parts:
        part.calls = 0
    with evaluating(network):
        network(x.to(device_of(network)))
    if any(part.calls != 1 for part in parts):
        raise ValueError("one of its equilibria is not solved once a pass")


class _Trajectory:
    """This has the states that the module's iteration passes, and the consistency loss of a student along them."""

    def __init__(self, module: nn.Module, X: torch.Tensor, seed: int):
        self.teachers = {j: stopped(module, j) for j in range(1, FARTHEST + 2)}
        for teacher in self.teachers.values():
            for part in unrolled_parts(teacher):
                part.keep = True
        self.generator = generator("trajectory", seed)

    def states(self, j: int, x: torch.Tensor) -> list:
        """Returns the state of each equilibrium after j steps of the module; None, its own start, for j = 0."""
        if j == 0:
            return [None] * len(unrolled_parts(self.teachers[1]))
        with torch.no_grad():
            self.teachers[j](x)
        return [part.last for part in unrolled_parts(self.teachers[j])]

    def loss(self, network: nn.Module, x: torch.Tensor, targets: torch.Tensor, distance: _Distance) -> torch.Tensor:
        """Returns the loss from the start, and from a random point of the iteration to the outputs and to the next."""
        j = int(torch.randint(FARTHEST + 1, (1,), generator=self.generator, device="cpu"))
        near = self._from(network, self.states(j, x), x)
        with torch.no_grad():
            nearer = self._from(network, self.states(j + 1, x), x)
        loss = distance(near, targets) + distance(near, nearer.float())
        return loss if j == 0 else loss + distance(self._from(network, self.states(0, x), x), targets)

    @staticmethod
    def _from(network: nn.Module, states: list, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores of k steps from these states."""
        check()
        parts: list[Unrolled] = unrolled_parts(network)
        try:
            for part, state in zip(parts, states):
                part.start = state
            return scores(network(x))
        finally:
            for part in parts:
                part.start = None
