"""Where a module comes from: a user's file, `my_file.py:build`, or a checkpoint that main.py wrote; never unpickled."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deq_enn.names import PCDEQ_ACTIVATIONS
from deq_enn.networks.pcdeq import AUGMENTED_WIDTHS, WIDTHS, PcDEQNetwork, build_pcdeq
from deq_enn.networks.trained_deq import load_checkpoint
from deq_enn.theory.activations import load_activation

WEIGHTS = "state_dict", "model", "weights"  # keys under which training scripts keep weights beside other things
EQUILIBRIUM = ".inner.parametrizations.weight.original1"  # the end of a key that only a positive concave DEQ has


def load_module(spec: str, weights: Path | str | None = None) -> tuple[nn.Module, Any]:
    """Returns the module of "path/to/file.py:build", a file WHOSE CODE IS RUN, with its weights; and `steps`.

    Parameters
    ----------
    spec : `build` is a function without arguments that returns the module, or the module itself. A function `steps`
        in the file, steps(module, k) -> module, says how to stop it after k steps.
    weights : of torch.save(module.state_dict(), ...), read by weights_only=True.

    Returns
    -------
    (module, steps), None where the file has no `steps`.

    Raises
    ------
    ValueError : in one line, for what is missing, does not run, or does not fit.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"--module {spec!r}: give path/to/file.py:build, whose build() returns the module")
    if not Path(path).is_file():
        raise ValueError(f"--module {spec!r}: there is no file {path}")
    values = _run(Path(path), spec)
    if name not in values:
        raise ValueError(f"--module {spec!r}: {path} defines no {name}")
    module = values[name]
    if not isinstance(module, nn.Module):
        try:
            module = module()
        except Exception as error:  # whatever the user's code raises
            raise ValueError(f"--module {spec!r}: {name}() fails ({_short(error)})") from None
    if not isinstance(module, nn.Module):
        raise ValueError(f"--module {spec!r}: {name}() returns {type(module).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load(module, weights)
    return module, values.get("steps")


def _run(path: Path, spec: str) -> dict[str, Any]:
    """The names that the file defines."""
    found_by = importlib.util.spec_from_file_location(f"_module_of_{path.stem}", path)
    assert found_by is not None and found_by.loader is not None
    namespace = importlib.util.module_from_spec(found_by)
    sys.modules[found_by.name] = namespace  # dataclasses and pickles look for it there
    try:
        found_by.loader.exec_module(namespace)
    except SystemExit as stop:  # it would end the whole program, as if all were done
        raise ValueError(f"--module {spec!r}: {path} ends the program (SystemExit: {stop})") from None
    except Exception as error:
        raise ValueError(f"--module {spec!r}: {path} does not run ({_short(error)})") from None
    return vars(namespace)


def _load(module: nn.Module, path: Path | str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"--weights {path} cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever a file that is none makes of the unpickler
        raise ValueError(
            f"--weights {path} holds no weights that can be read without unpickling ({type(error).__name__}): write "
            "torch.save(module.state_dict(), path)"
        ) from None
    for key in WEIGHTS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"--weights {path} holds {type(state).__name__}, not a state_dict")
    try:
        module.load_state_dict(state)
    except Exception as error:  # missing or foreign keys, other shapes
        raise ValueError(f"--weights {path} does not fit the module: {_short(error)}") from None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---------------------------------------------------------------------------------------------------------------
# checkpoints


def load_any(path: Path | str, activation: str, sigma_a2: float) -> nn.Module:
    """Returns the DEQ of a checkpoint, or of its .best.pt; nothing is unpickled.

    Parameters
    ----------
    activation : of the DEQ: a name or path/to/file.py:name as `load_activation` has it; for a positive concave DEQ
        tanh, softsign, relu6 or sigmoid.
    sigma_a2 : of a DEQ of `--train full`; a positive concave one has none.

    Raises
    ------
    ValueError : in one line, where the file is no such checkpoint.
    """
    state = _state(path)
    if any(key.endswith(EQUILIBRIUM) for key in state):
        return _pcdeq(path, state, activation)
    return load_checkpoint(path, load_activation(activation), sigma_a2)


def _state(path: Path | str) -> dict[str, Any]:
    """The weights in a file; none where `load_checkpoint` will say what is wrong with it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a file that is none makes of the unpickler
        return {}
    state = state.get("model", state) if isinstance(state, dict) else {}
    return {key: value for key, value in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}


def _pcdeq(path: Path | str, state: dict[str, Any], activation: str) -> PcDEQNetwork:
    kinds = [kind for kind, names in PCDEQ_ACTIVATIONS.items() if activation in names]
    if not kinds:
        known = ", ".join(name for names in PCDEQ_ACTIVATIONS.values() for name in names)
        raise ValueError(f"{path} is of a positive concave DEQ: --activation must be one of {known}, got {activation}")
    equilibria = [value for key, value in state.items() if key.endswith(EQUILIBRIUM)]
    first = next(value for key, value in state.items() if key.endswith(".weight") and value.ndim > 1)
    body = "linear" if equilibria[0].ndim == 2 else "single_conv" if len(equilibria) == 1 else "multi_conv"
    channels = first.shape[1] if first.ndim == 4 else {784: 1, 3072: 3}.get(first.shape[1], 0)
    shape = {1: (1, 28, 28), 3: (3, 32, 32)}.get(channels)
    classes = list(state.values())[-1].shape[0]
    try:
        if shape is None:
            raise ValueError("its images have a shape that is not known")
        widths = tuple(len(weight) for weight in equilibria)
        augmented = widths == AUGMENTED_WIDTHS.get(shape, {}).get(body) != WIDTHS[shape][body]
        network = build_pcdeq(f"{body}_pcdeq_{kinds[0]}", activation, shape, classes, augmented=augmented)
        network.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no checkpoint of a positive concave DEQ of this project: {reason}") from None
    return network.eval()
