"""The exact kernels of the figures, computed on the device that was asked for; the figures go on on the CPU."""

if __name__ == "__main__":
    raise SystemExit("exact_kernels.py is shared by the figures: run one of ck_ntk/*.py")

from deq_enn.kernels import exact


def implicit_kernels(X, *settings, device="cpu", **more):
    """Returns the exact kernels of a DEQ at X, as `deq_enn.kernels.exact` has them, on the CPU."""
    return tuple(kernel.cpu() for kernel in exact.implicit_kernels(X.to(device), *settings, **more))


def explicit_kernels(X, layers, device="cpu"):
    """Returns the exact kernels of an explicit network at X, on the CPU."""
    return tuple(kernel.cpu() for kernel in exact.explicit_kernels(X.to(device), layers))
