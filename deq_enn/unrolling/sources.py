"""Where a module comes from: a user's file, `my_file.py:build`, or a checkpoint that main.py wrote; never unpickled."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deq_enn.names import PCDEQ_ACTIVATIONS
from deq_enn.networks.deq import DEQ
from deq_enn.networks.pcdeq import AUGMENTED_WIDTHS, WIDTHS, PcDEQNetwork, build_pcdeq
from deq_enn.theory.activations import Activation, load_activation

WEIGHTS = "state_dict", "model", "weights"  # keys under which training scripts keep weights beside other things
WRAPPED = "_orig_mod.", "module."  # beginnings of the keys that torch.compile and DataParallel make
EQUILIBRIUM = ".inner.parametrizations.weight.original1"  # the end of a key that only a positive concave DEQ has
YOUR_OWN = "a network of your own goes by --module FILE.py:build --weights FILE.pt"


def load_module(spec: str, weights: Path | str | None = None) -> tuple[nn.Module, Any]:
    """Returns the module of "path/to/file.py:build", a file WHOSE CODE IS RUN, with its weights; and `steps`.

    Parameters
    ----------
    spec : `build` is a function without arguments that returns the module, or the module itself. A function `steps`
        in the file, steps(module, k) -> module, says how to stop it after k steps. While both run, files beside this
        one can be imported, as where Python runs it.
    weights : of torch.save(module.state_dict(), ...), read by weights_only=True; that of a module within torch.compile
        or DataParallel is taken too.

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
    with _importing_beside(Path(path)):
        values = _run(Path(path), spec)
        if name not in values:
            raise ValueError(f"--module {spec!r}: {path} defines no {name}")
        module = values[name] if isinstance(values[name], nn.Module) else _called(values[name], name, spec)
    if weights is not None:
        _load(module, weights)
    return module, values.get("steps")


@contextlib.contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Lets imports look into the folder of this file first; where the file changes the working folder, it is undone."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with contextlib.chdir("."):
            yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code has taken it out
            sys.path.remove(folder)


def _run(path: Path, spec: str) -> dict[str, Any]:
    """Returns the names that the file defines."""
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


def _called(build: Any, name: str, spec: str) -> nn.Module:
    """Returns the module that the user's function makes."""
    try:
        module = build()
    except SystemExit as stop:
        raise ValueError(f"--module {spec!r}: {name}() ends the program (SystemExit: {stop})") from None
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"--module {spec!r}: {name}() fails ({_short(error)})") from None
    if not isinstance(module, nn.Module):
        raise ValueError(f"--module {spec!r}: {name}() returns {type(module).__name__}, not a torch.nn.Module")
    return module


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
        module.load_state_dict(_of_the_module_within(state, module))
    except Exception as error:  # missing or foreign keys, other shapes
        raise ValueError(f"--weights {path} does not fit the module: {_short(error)}") from None


def _of_the_module_within(state: dict[Any, Any], module: nn.Module) -> dict[Any, Any]:
    """Returns the weights with their names in the module, if another wrapped it when they were saved."""
    own = module.state_dict()
    for prefix in WRAPPED:
        if all(str(key).startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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
    ValueError : in one line, where the file is no such checkpoint, or says that its DEQ is another one.
    """
    state = _state(path)
    _check_asked(path, activation, sigma_a2)
    if any(key.endswith(EQUILIBRIUM) for key in state):
        return _pcdeq(path, state, activation)
    return load_checkpoint(path, load_activation(activation), sigma_a2)


def _check_asked(path: Path | str, activation: str, sigma_a2: float) -> None:
    """Refuses an activation and a sigma_a^2 that the checkpoint was not trained with; an older one does not say."""
    try:
        config = torch.load(path, map_location="cpu", weights_only=True)["config"]
        trained = config["activation"] or {"inn": "relu", "tanh_inn": "tanh"}.get(config["model"], "")
        steps, asquare = config.get("steps", 0), config["asquare"] if config["train"] == "full" else sigma_a2
    except Exception:  # no checkpoint, of which others will say what is wrong, or one that does not say
        return
    if steps:
        raise ValueError(f"{path} is of a DEQ that was trained as {steps} steps: it has no equilibrium to judge")
    if ":" not in trained + activation and trained not in ("", activation):
        raise ValueError(f"{path} is of a DEQ of {trained}, not of {activation}: give --activation {trained}")
    if asquare != sigma_a2:
        raise ValueError(
            f"{path} was trained with sigma_a^2 = {asquare:g}, not {sigma_a2:g}: give --asquare {asquare:g}"
        )


def _state(path: Path | str) -> dict[str, Any]:
    """Returns the weights in a file; none where `load_checkpoint` will say what is wrong with it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a file that is none makes of the unpickler
        return {}
    return _weights_in(state)


def _weights_in(state: Any) -> dict[str, Any]:
    """Returns the weights of a checkpoint, which may hold other things too; none where it is something else."""
    state = state.get("model", state) if isinstance(state, dict) else {}
    return {key: value for key, value in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}


def _pcdeq(path: Path | str, state: dict[str, Any], activation: str) -> PcDEQNetwork:
    kinds = [kind for kind, names in PCDEQ_ACTIVATIONS.items() if activation in names]
    if not kinds:
        known = ", ".join(name for names in PCDEQ_ACTIVATIONS.values() for name in names)
        raise ValueError(f"{path} is of a positive concave DEQ: --activation must be one of {known}, got {activation}")
    try:
        network = _pcdeq_like(state, kinds[0], activation)
        network.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is no checkpoint of a positive concave DEQ of this project: {reason}; {YOUR_OWN}"
        ) from None
    return network.eval()


def _pcdeq_like(state: dict[str, Any], kind: str, activation: str) -> PcDEQNetwork:
    """Returns the network whose weights have the shapes of these; ValueError where there is none."""
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, torch.Tensor)}
    widths = [shape for key, shape in shapes.items() if key.endswith(EQUILIBRIUM)]
    first = next((shape for key, shape in shapes.items() if key.endswith(".weight") and len(shape) > 1), ())
    last = [*shapes.values()][-1] if shapes else ()
    if not widths or not first or not last or not all(widths):
        raise ValueError("it has other layers")
    body = "linear" if len(widths[0]) == 2 else "single_conv" if len(widths) == 1 else "multi_conv"
    channels = first[1] if len(first) == 4 else {784: 1, 3072: 3}.get(first[1], 0)
    image = {1: (1, 28, 28), 3: (3, 32, 32)}.get(channels)
    if image is None:
        raise ValueError("its images have a shape that is not known")
    augmented = tuple(shape[0] for shape in widths) == AUGMENTED_WIDTHS.get(image, {}).get(body) != WIDTHS[image][body]
    return build_pcdeq(f"{body}_pcdeq_{kind}", activation, image, last[0], augmented=augmented)


def load_checkpoint(path: Path | str, activation: Activation, sigma_a2: float) -> DEQ:
    """Returns the DEQ of a checkpoint that main.py --train full wrote (or of its .best.pt), never unpickled.

    Raises ValueError, in one line, where the file is no such checkpoint, or the DEQ has no stable equilibrium.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever a file that is not one makes of the unpickler
        raise ValueError(f"{path} is no checkpoint of main.py ({type(error).__name__})") from None
    state = _weights_in(state)
    if "weight" in state and "A" not in state:
        raise ValueError(f"{path} holds a readout alone (--train readout): its DEQ is as it was drawn, without a file")
    if missing := [key for key in ("A", "B", "readout.weight") if not isinstance(state.get(key), torch.Tensor)]:
        raise ValueError(f"{path} is no checkpoint of a DEQ: it has no {', '.join(missing)}; {YOUR_OWN}")
    A, B, readout = (state[key] for key in ("A", "B", "readout.weight"))
    if A.ndim == 4:
        raise ValueError(
            f"{path} is of a convolutional DEQ, and does not hold the shape of its images: make the ConvDEQ in a file "
            f"of your own and give --module FILE.py:build --weights {path}"
        )
    if not A.ndim == B.ndim == readout.ndim == 2:
        raise ValueError(f"{path} is no checkpoint of a DEQ: its A, B and readout are no matrices; {YOUR_OWN}")
    deq = DEQ(activation, B.shape[1], len(B), len(readout), sigma_a2).to(A)
    try:
        deq.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no checkpoint of a DEQ: {reason:.200}; {YOUR_OWN}") from None
    return deq
