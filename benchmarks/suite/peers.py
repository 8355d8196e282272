"""The other ways of damaging units: brute force, a forward-hook loop, PyTorchFI where it is installed.

Each function returns work to be timed. The work evaluates the network once per unit over the data and returns the
outputs [units, examples, classes], which all ways must agree on. What can be prepared before, is.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from suite.networks import Case
from torch import Tensor, nn

from planaria.core.anatomy import Anatomy, Unit
from planaria.measure.data import Data

Work = Callable[[], Tensor]

HOOKS = "forward-hook loop"


def brute_force(case: Case, units: Sequence[Unit], data: Data) -> Work:
    """Copy the module, zero the weights that silence the unit, run it; for every unit."""
    anatomy = Anatomy.of(case.net)
    lesions = []
    for unit in units:
        slices = anatomy.entries([unit])
        lesions.append(slices.outgoing or slices.all)  # zero outgoing weights silence whatever the activation

    def work() -> Tensor:
        outputs = []
        for entries in lesions:
            damaged = copy.deepcopy(case.model)
            for name, selected in entries.items():
                damaged.get_parameter(name).masked_fill_(selected, 0)
            outputs.append(_forward(damaged, data, case.batch))
        return torch.stack(outputs)

    return work


def hook_loop(case: Case, units: Sequence[Unit], data: Data) -> Work:
    """Zero the unit in the output of its activation module by a forward hook; for every unit."""
    modules = dict(case.model.named_modules())

    def work() -> Tensor:
        outputs = []
        for unit in units:
            module = modules[case.gates[unit.layer]]
            handle = module.register_forward_hook(_closing(unit.index))
            outputs.append(_forward(case.model, data, case.batch))
            handle.remove()
        return torch.stack(outputs)

    return work


def pytorchfi(case: Case, units: Sequence[Unit], data: Data) -> Work | None:
    """The same by PyTorchFI's custom hooks, its faster way; None if it is not installed.

    It damages outputs of layers, before their activation, which is the same where the activation of 0 is 0. The layer
    is told by its module, not by its number, since its counter of layers goes on over batches.
    """
    if find_spec("pytorchfi") is None:
        return None
    with _quiet(), torch.random.fork_rng(devices=[]):
        from pytorchfi.core import fault_injection  # installed in few environments

        modules = dict(case.model.named_modules())
        made = {layer: _before(layer, gate, modules) for layer, gate in case.gates.items()}
        kinds = list({type(modules[name]) for name in made.values()})
        injector = fault_injection(case.model, case.batch, list(data.inputs.shape[1:]), kinds)

    def work() -> Tensor:
        outputs = []
        for unit in units:
            target: list[nn.Module] = []
            close = _closing(unit.index)

            def hook(module: nn.Module, given: Any, output: Tensor, close: Any = close, target: Any = target) -> Any:
                return close(module, given, output) if module is target[0] else None

            with _quiet():
                damaged = injector.declare_neuron_fi(function=hook)
            target.append(damaged.get_submodule(made[unit.layer]))
            outputs.append(_forward(damaged, data, case.batch))
            injector.fi_reset()
        return torch.stack(outputs)

    return work


def peers(case: Case, units: Sequence[Unit], data: Data) -> tuple[str, dict[str, Work]]:
    """Name for the column, and ways for `interleave`: "peer" and, beside PyTorchFI, the hook loop."""
    hooks, other = hook_loop(case, units, data), pytorchfi(case, units, data)
    if other is None:
        return f"{HOOKS} (PyTorchFI is not installed)", {"peer": hooks}
    return "PyTorchFI 0.6.0", {"peer": other, HOOKS: hooks}


def _forward(model: nn.Module, data: Data, batch: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in data.inputs.split(batch)])


def _closing(index: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Hook that zeroes one unit: axis 1 of feature maps, the last axis of vectors and tokens."""

    def close(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        del module, given
        output.select(1 if output.ndim == 4 else -1, index).zero_()
        return output

    return close


def _before(layer: str, gate: str, modules: dict[str, nn.Module]) -> str:
    """The module whose output the activation takes: the layer, or its batch normalisation."""
    norm = gate.replace("relu", "bn")
    return norm if norm != gate and norm in modules else layer


@contextmanager
def _quiet() -> Iterator[None]:
    """Undo what PyTorchFI does to the logging of the whole program."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if one not in handlers]:
            root.removeHandler(handler)
