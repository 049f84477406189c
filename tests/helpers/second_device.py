"""A second device for machines without a GPU: a tensor that says it is elsewhere, and computes on the CPU.

torch's device "meta" plays the part of CUDA. Within `second_device()` a tensor that is made or moved there keeps its
numbers. An operation on tensors of both devices fails as it does between the CPU and CUDA, so that a program that
runs here moves every tensor where it has to be. `torch._subclasses.FakeTensorMode` has the same rules and no numbers:
solvers, which look at their residuals, do not run in it. tests/networks/test_second_device.py compares the two.
"""

import contextlib
import importlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SECOND = torch.device("meta")
aten = torch.ops.aten
ANY_DEVICE = {aten.copy_.default, aten._to_copy.default}
CPU_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `elem` has its numbers."""

    @staticmethod
    def __new__(cls, elem):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=SECOND,
        )

    def __init__(self, elem):
        self.elem = elem

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})

    def tolist(self):
        return self.elem.tolist()


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls):  # or the first use takes two seconds, of importing a compiler
        return False


def _mixed(func, args, here):
    """Whether these tensors of the CPU may not meet others of the second device."""
    if func in ANY_DEVICE:
        return False
    if func in CPU_INDEX:  # the samples, and what is written there, are on one device; CPU indices are moved
        return not isinstance(args[0], Elsewhere) or any(t is value and t.ndim for value in args[2:3] for t in here)
    written = [argument for argument, schema in zip(args, func._schema.arguments) if schema.is_write]
    if torch.Tag.pointwise in func.tags or func is aten.fill_.Tensor:  # numbers of the CPU are copied
        return any(t.ndim or any(t is argument for argument in written) for t in here)
    return True


def execute(func, args, kwargs):
    """Does an operation on the CPU, and returns its results as tensors of the device that they would be on."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    here = [t for t in tensors if not isinstance(t, Elsewhere)]
    assert all(t.device.type == "cpu" for t in here), f"{func}: a tensor of the second device has lost its numbers"
    if there and here and _mixed(func, args, here):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    if device is not None and torch.device(device) == SECOND and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of the second device")
    wrappers = {id(t.elem): t for t in there}
    inner, named = tree_map(lambda t: t.elem if isinstance(t, Elsewhere) else t, (args, kwargs))
    result = func(*inner, **(named if device is None else named | {"device": torch.device("cpu")}))
    elsewhere = bool(there) if device is None else torch.device(device) == SECOND

    def wrap(t):
        if not isinstance(t, torch.Tensor):
            return t
        if id(t) in wrappers:  # written in place
            assert wrappers[id(t)].shape == t.shape, f"{func} has changed a shape, which is not followed"
            return wrappers[id(t)]
        return Elsewhere(t) if elsewhere else t

    return tree_map(wrap, result)


@contextlib.contextmanager
def second_device(monkeypatch):
    """Tensors of the second device have numbers in here; yields the device."""
    optimizers = importlib.import_module("torch.optim.optimizer")  # which torch.optim hides
    name = "_get_fused_kernels_supported_devices"
    supported = [*getattr(optimizers, name)(), SECOND.type]
    monkeypatch.setattr(optimizers, name, lambda: supported)
    tensor = torch.tensor  # which makes a tensor below the mode
    monkeypatch.setattr(torch, "tensor", lambda data, device=None, **kinds: tensor(data, **kinds).to(device or "cpu"))
    with _Mode():
        yield SECOND
