"""Network: a frozen module with its weights as an immutable value.

The user's model is copied, never touched. Operators and flows take a Network and return another one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from planaria.core.autodiff import plain_kernels, steps_matter
from planaria.core.devices import check_autocast
from planaria.core.errors import InputError
from planaria.core.memory import at_once
from planaria.core.port import PLAIN, Inputs, Port
from planaria.core.trees import Entries, Weights, digest, subtract


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A network: architecture, weights, buffers and how plastic each weight is.

    Outputs are f(inputs; weights, buffers) in eval mode. Treat every tensor in it as read-only.

    Attributes:
        module: Architecture without data (parameters on the meta device), shared by all networks derived from it.
        weights: Parameter name -> tensor. Tied parameters have one name, the first.
        buffers: Buffer name -> tensor (normalisation statistics and the like).
        plasticity: Parameter name -> tensor of the parameter's shape; every move of an entry is multiplied by it.
            0 = pinned for good, 1 = ordinary.
        inputs: A few example inputs [examples, ...], from which the anatomy is traced; None if not given.
        port: How rows become what the module takes, and which of its outputs counts.

    Not guaranteed: that a module whose forward depends on hidden mutable state computes the same twice; nor the zeros
    that torch's fast path of encoders gives at padded positions, since the layers themselves are run, as in training.

    Example:
        >>> net = Network.of(nn.Linear(2, 1), torch.zeros(1, 2))
        >>> net(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    module: nn.Module
    weights: Weights
    buffers: dict[str, Tensor]
    plasticity: Weights
    inputs: Tensor | None = None
    port: Port = PLAIN

    @staticmethod
    def of(model: nn.Module, inputs: Inputs | None = None, output: str | int | None = None) -> Network:
        """Copy a module into a value; the module is left exactly as it was.

        Args:
            model: Any module, `unwrapped`. Its mode, gradients, hooks and tensors stay untouched. Parameters that do
                not require gradients are pinned, unless that holds for all of them (a model that was only prepared for
                inference).
            inputs: Example inputs; a few suffice. A tensor [examples, ...], a tuple of positional arguments, or a
                mapping of keyword arguments (a Hugging Face BatchEncoding, for example). Needed for damage to units.
            output: Where the model returns several tensors: name or place of the one that counts. By default "logits"
                where it is there, else the first tensor of floating-point numbers.

        Returns:
            Network with plasticity 1, except where pinned.

        Raises:
            InputError: If a weight or buffer holds NaN or infinity, the model has no parameters, or it needs arguments
                that the inputs do not give.

        Example:
            >>> Network.of(nn.Linear(2, 1)).weights.keys()
            dict_keys(['weight', 'bias'])
        """
        model = unwrapped(model)
        _check(model, inputs)
        port = Port(output=output) if inputs is None else Port.of(model, inputs, output, "Network.of(inputs)")
        weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        if not weights:
            raise InputError("Network.of(model)", "a module with parameters", type(model).__name__)
        for name, tensor in (weights | buffers).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                count = int((~torch.isfinite(tensor)).sum())
                raise InputError(
                    f"Network.of(model).{name}",
                    "finite numbers",
                    f"{count} NaN or infinite of {tensor.numel()}",
                    "Load weights that were saved from a healthy network.",
                )
        place = next(iter(weights.values())).device
        example = None if inputs is None else port.rows(inputs).detach()[:2].to(place, copy=True)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        plasticity = {
            name: torch.zeros_like(ones) if name in frozen and len(frozen) < len(weights) else ones
            for name, ones in _ones(weights).items()
        }
        return Network(_skeleton(model), weights, buffers, plasticity, example, port)

    def __call__(self, inputs: Inputs, weights: Weights | None = None) -> Any:
        """Outputs for `inputs` in eval mode.

        Args:
            inputs: [examples, ...]; or the arguments that the module takes, as given to `of`.
            weights: Used instead of the network's own, for example with gradients attached.

        Returns:
            What the module returns, of several tensors the one that counts; for a classifier, logits
            [examples, classes]. Carries no graph unless `weights` requires gradients. Inputs so many that the pass
            would need gigabytes are taken in parts.

        Example:
            >>> Network.of(nn.Linear(1, 1))(torch.ones(1, 1)).requires_grad
            False
        """
        rows = self.port.rows(inputs)
        if weights is None and (size := self.at_once(rows)) < len(rows):
            return torch.cat([self._run(some) for some in rows.split(size)])
        return self._run(rows, weights)

    def at_once(self, rows: Tensor, count: int | None = None) -> int:
        """How many examples one pass without gradients may take without needing gigabytes.

        Args:
            rows: Some of them, [examples, ...].
            count: How many there are; by default as many as rows.
        """
        return at_once(self.module, rows, self._run, count)

    def _run(self, rows: Tensor, weights: Weights | None = None) -> Any:
        # Cloned because some modules write into their buffers even in eval mode.
        buffers = {name: tensor.clone() for name, tensor in self.buffers.items()}
        written_out = steps_matter(self.module, self.device)
        with plain_kernels(recurrence=written_out), torch.set_grad_enabled(weights is not None):
            return self.evaluate(rows, weights or self.weights, buffers)

    def evaluate(self, rows: Tensor, weights: Weights, buffers: Mapping[str, Tensor]) -> Any:
        """Outputs as `__call__` gives them, under whatever modes the caller has set; buffers may be written to.

        Args:
            rows: [examples, ...].
            weights: All weights.
            buffers: All buffers.
        """

        def called(*args: Tensor, **kwargs: Tensor) -> Any:
            return functional_call(self.module, (weights, dict(buffers)), args, kwargs)

        return self.port(called, rows)

    def with_weights(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> Network:
        """The same network with some tensors exchanged.

        Args:
            weights: Name -> new tensor; names left out keep theirs.
            buffers: The same for buffers.

        Raises:
            InputError: On an unknown name or another shape.

        Example:
            >>> net = Network.of(nn.Linear(1, 1))
            >>> float(net.with_weights({"bias": torch.tensor([5.0])}).weights["bias"])
            5.0
        """
        _fit("Network.with_weights", weights, self.weights)
        _fit("Network.with_weights(buffers)", buffers or {}, self.buffers)
        return replace(self, weights={**self.weights, **weights}, buffers={**self.buffers, **(buffers or {})})

    def with_plasticity(self, plasticity: Mapping[str, Tensor]) -> Network:
        """The same network with other plasticity for the named weights.

        Raises:
            InputError: On an unknown name, another shape, or a negative multiplier.
        """
        _fit("Network.with_plasticity", plasticity, self.weights)
        for name, tensor in plasticity.items():
            if not bool((tensor >= 0).all()):
                raise InputError(f"Network.with_plasticity({name!r})", "multipliers of at least 0", "a negative or NaN")
        return replace(self, plasticity={**self.plasticity, **plasticity})

    def with_inputs(self, inputs: Inputs) -> Network:
        """The same network with example inputs for its anatomy, where it has none; see `of`."""
        if self.inputs is not None:
            return self
        _check(self.module, inputs)
        port = Port.of(self.module, inputs, self.port.output)
        port = replace(port, autocast=self.port.autocast)
        return replace(self, inputs=port.rows(inputs).detach()[:2].to(self.device, copy=True), port=port)

    def with_autocast(self, dtype: torch.dtype | None) -> Network:
        """The same network in mixed precision: products and convolutions in `dtype`, weights as they are.

        Holds for passes and training alike. Outputs are single precision; they differ from those without in the third
        digit, and sweeps only take ways that run the same operations again.

        Args:
            dtype: torch.bfloat16 or torch.float16; None for the weights' own type.

        Raises:
            EnvironmentProblem: The network's device cannot compute products in this type.
            InputError: Weights that are not single precision.

        Example:
            >>> Network.of(nn.Linear(2, 1)).with_autocast(torch.bfloat16)(torch.ones(3, 2)).dtype
            torch.float32
        """
        if dtype is not None:
            check_autocast(self.device, dtype, "Network.with_autocast")
            others = {w.dtype for w in self.weights.values() if w.is_floating_point()} - {torch.float32}
            if others:
                raise InputError("Network.with_autocast", "weights in single precision", f"{others.pop()}")
        return replace(self, port=replace(self.port, autocast=dtype))

    def pin(self, entries: Entries) -> Network:
        """The same network with the selected entries pinned: plasticity 0, so that no flow moves them.

        Raises:
            InputError: On an unknown name or another shape.
        """
        _fit("Network.pin", entries, self.weights)
        return self.with_plasticity(
            {
                name: self.plasticity[name].masked_fill(selected.to(self.device), 0.0)
                for name, selected in entries.items()
            }
        )

    def move(self, target: Mapping[str, Tensor]) -> Network:
        """Apply the one law of motion: w <- w + plasticity * (target - w).

        Args:
            target: Where the weights are proposed to go; names left out stay.

        Returns:
            Network in which pinned entries are bit-identical and entries of plasticity 1 are at the target.

        Example:
            >>> net = Network.of(nn.Linear(1, 1)).pin({"bias": torch.tensor([True])})
            >>> moved = net.move({"bias": torch.tensor([9.0])})
            >>> bool(moved.weights["bias"] == net.weights["bias"])
            True
        """
        moved = {name: law(self.weights[name], to, self.plasticity[name]) for name, to in target.items()}
        return self.with_weights(moved)

    def __sub__(self, other: Network) -> Weights:
        """The displacement that leads from another network to this one: difference of the weights, name by name.

        Raises:
            InputError: If the other has weights of other names or shapes.

        Example:
            >>> a = Network.of(nn.Linear(1, 1)).with_weights({"bias": torch.tensor([1.0])})
            >>> a.with_weights({"bias": torch.tensor([3.0])}) - a
            {'weight': tensor([[0.]]), 'bias': tensor([2.])}
        """
        if not isinstance(other, Network):
            return NotImplemented
        _fit("Network - Network", other.weights, self.weights)
        if missing := [name for name in self.weights if name not in other.weights]:
            raise InputError("Network - Network", "networks with the same weights", f"one without {missing[0]!r}")
        return subtract(self.weights, other.weights)

    def to_module(self) -> nn.Module:
        """An ordinary, independent module with these weights, in eval mode.

        Example:
            >>> Network.of(nn.Linear(2, 1)).to_module()
            Linear(in_features=2, out_features=1, bias=True)
        """
        tensors: dict[int, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            tensors[id(parameter)] = nn.Parameter(self.weights[name].clone(), requires_grad=parameter.requires_grad)
        for name, buffer in self.module.named_buffers():
            tensors[id(buffer)] = self.buffers[name].clone()
        return copy.deepcopy(self.module, tensors)  # the memo replaces each tensor

    def to(self, device: torch.device | str) -> Network:
        """The same network with every tensor on `device`."""
        return replace(
            self,
            weights={name: tensor.to(device) for name, tensor in self.weights.items()},
            buffers={name: tensor.to(device) for name, tensor in self.buffers.items()},
            plasticity={name: tensor.to(device) for name, tensor in self.plasticity.items()},
            inputs=None if self.inputs is None else self.inputs.to(device),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    @property
    def parameters(self) -> int:
        """Number of weight entries."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def sparsity(self) -> float:
        """Fraction of weight entries that are exactly zero."""
        return sum(int((tensor == 0).sum()) for tensor in self.weights.values()) / self.parameters

    @property
    def sha256(self) -> str:
        """Hash of all weights and buffers."""
        return digest({**self.weights, **{f"buffer:{name}": tensor for name, tensor in self.buffers.items()}})

    def __repr__(self) -> str:
        return f"<Network {type(self.module).__name__}: {self.parameters:,} weights, sha256 {self.sha256[:12]}>"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, without what spreads it over devices (DataParallel) or compiles it (torch.compile).

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(1, 1)))
        Linear(in_features=1, out_features=1, bias=True)
    """
    while isinstance(model, nn.Module):
        spread = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = model.module if spread else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def law(weight: Tensor, target: Tensor, plasticity: Tensor) -> Tensor:
    """The one law of motion on one tensor: weight + plasticity * (target - weight).

    Args:
        weight: Where the entries are.
        target: Where they are proposed to go.
        plasticity: Multiplier per entry.

    Returns:
        New tensor: bit-identical to `weight` where plasticity is 0 (also if the target is NaN), to `target` where 1.

    Example:
        >>> law(torch.zeros(3), torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if bool((plasticity == 1).all()):
        return target.clone()
    between = torch.where(plasticity == 1, target, torch.lerp(weight, target, plasticity))
    return torch.where(plasticity == 0, weight, between)


def _fit(where: str, given: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    for name, tensor in given.items():
        if name not in known or tensor.shape != known[name].shape:
            expected = f"shape {list(known[name].shape)}" if name in known else "a known name"
            raise InputError(f"{where}[{name!r}]", expected, f"shape {list(tensor.shape)}")


def _check(model: object, inputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError("Network.of(model)", "a torch module", type(model).__name__)
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        where = f"Network.of(model).{scripted[0]}" if scripted[0] else "Network.of(model)"
        remedy = "Give the Python module that it was made from, or export that by torch.export."
        raise InputError(where, "a module whose operations can be watched", "TorchScript", remedy)
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(
            f"Network.of(model).{lazy[0]}", "weights of known shape", "a lazy one", "Run the model once first."
        )
    if isinstance(inputs, Tensor) and (inputs.ndim == 0 or len(inputs) == 0):
        expected = "a tensor [examples, ...] with at least one example"
        raise InputError("Network.of(inputs)", expected, f"shape {list(inputs.shape)}")


def _ones(weights: Weights) -> Weights:
    """Plasticity 1 for every entry, without using memory: one number seen through the weight's shape."""
    return {
        name: torch.ones((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        for name, tensor in weights.items()
    }


def _skeleton(model: nn.Module) -> nn.Module:
    """Deep copy of a module with its parameters and buffers replaced by empty ones on the meta device."""
    empty: dict[int, Any] = {}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        empty[id(buffer)] = torch.empty_like(buffer, device="meta")
    for module in model.modules():
        for value in vars(module).values():
            values = value.values() if isinstance(value, dict) else value
            for kept in values if isinstance(value, (dict, list, tuple)) else [value]:
                if isinstance(kept, Tensor) and kept.grad_fn is not None:
                    empty[id(kept)] = kept.detach()  # of an earlier pass; torch refuses to copy it with its graph
    try:
        return copy.deepcopy(model, empty).eval()
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
        got = f"{type(problem).__name__}: {(str(problem).splitlines() or ['no message'])[0]}"
        remedy = "Take out of the module what cannot be copied (locks, files, processes, compiled code)."
        raise InputError("Network.of(model)", "a module that can be copied", got, remedy) from problem
