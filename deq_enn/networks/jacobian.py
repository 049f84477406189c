"""The Jacobian df/dz at an equilibrium is measured here without being formed: its size, and its spectral radius.

A penalty on the size, while a network is trained, keeps its equilibrium easy to find. The spectral radius is the rate
at which plain iteration converges near the equilibrium; from 1 on it does not.

References: Bai, Koltun & Kolter, Stabilizing equilibrium models by Jacobian regularization, ICML 2021; Hutchinson, A
stochastic estimator of the trace, Commun. Statist. Simula. 1989; Saad, Numerical methods for large eigenvalue problems,
2011, chapters 4 and 6.
"""

from collections.abc import Callable

import torch

POWERS = 60  # steps of the power iteration before its vectors are projected on
BASIS = 8  # dimension of the Krylov space that a spectral radius is read off
NEGLIGIBLE = 1e-5  # part of a product, relative to the product, that is taken for rounding

System = tuple[Callable[..., torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]]  # f, z and args, FixedPoint.last


def jacobian_size(system: System, probe: torch.Tensor) -> torch.Tensor:
    """Estimates |df/dz|_F^2 / d of each sample, (n,), for states of d entries, differentiably in the args.

    Parameters
    ----------
    system : f, its fixed point z (n, ...), and its further arguments; z itself is held fixed, as torchdeq has it.
    probe : (n, ...) standard normal numbers v. The estimate is |v^T df/dz|^2 / d, which has the size as its mean.
    """
    f, z, args = system
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (product,) = torch.autograd.grad(f(z, *args), z, probe, create_graph=True)
    return product.flatten(1).square().sum(1) / probe.shape[1:].numel()  # of no samples too


def spectral_radius(system: System, start: torch.Tensor) -> torch.Tensor:
    """Estimates the spectral radius of df/dz of each sample, (n,) float64.

    Parameters
    ----------
    system : f, its fixed point z (n, ...), and its further arguments; samples must not depend on one another.
    start : (n, ...) random numbers that the power iteration begins with.

    Notes
    -----
    The eigenvalues of largest modulus of a real matrix may be a complex pair, about which plain power iteration turns
    for ever. So after `POWERS` steps the matrix is projected on the Krylov space of the next `BASIS` vectors (Arnoldi),
    and the largest eigenvalue of this small matrix is taken.
    """
    f, z, args = system
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = f(z, *(a.detach() for a in args))

    def product(v: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(fz, z, v.view_as(z), retain_graph=True)[0].flatten(1)

    v = _unit(start.flatten(1))
    for _ in range(POWERS):
        v = _unit(product(v))
    size = min(BASIS, v.shape[1])
    basis, projected = [v], torch.zeros(len(v), size, size, dtype=torch.float64, device=v.device)
    for column in range(size):
        image = product(basis[column])
        rest = image
        for _ in range(2):  # orthogonal to rounding
            for row, other in enumerate(basis):
                part = (rest * other).sum(1, keepdim=True)
                projected[:, row, column] += part[:, 0]
                rest = rest - part * other
        length = torch.linalg.vector_norm(rest, dim=1)
        length = length * (length > NEGLIGIBLE * torch.linalg.vector_norm(image, dim=1))
        if column + 1 < size:
            projected[:, column + 1, column] = length
            basis.append(_unit(rest * (length > 0)[:, None]))
    return torch.linalg.eigvals(projected).abs().amax(1)


def _unit(v: torch.Tensor) -> torch.Tensor:
    """Returns the rows of v (n, d) with norm 1; those that are 0 stay 0."""
    return v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
