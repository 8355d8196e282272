"""Normalisation statistics of a network whose weights were put together from others.

Batch normalisation divides by statistics that were collected while its network was trained. Between two networks
nobody has collected any, and the average of the ends' is wrong: interpolated weights give activations of a smaller
variance. One pass over unlabelled inputs finds the right ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from planaria.core.autodiff import plain_kernels, steps_matter
from planaria.core.errors import InputError
from planaria.core.graph import Watch
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.core.trees import Weights

_KINDS = ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm")


def normalises(net: Network) -> tuple[str, ...]:
    """Layers of batch normalisation with running statistics, in the order in which they are built.

    Args:
        net: Any network. Where it has example inputs, normalisations that are called as functions are found, too.

    Raises:
        InputError: A layer that keeps no running statistics: its outputs depend on which inputs come together.

    Example:
        >>> from torch import nn
        >>> normalises(Network.of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LayerNorm(3))))
        ('1',)
    """
    _check(net)
    found = [name for name, part in net.module.named_modules() if isinstance(part, _BatchNorm)]
    if net.inputs is not None and net.buffers:
        layers: list[str] = []
        _watched(net, net.inputs, lambda layer, *_: layers.append(layer))
        found += [layer for layer in layers if layer not in found]
    return tuple(dict.fromkeys(found))


def renormalised(net: Network, inputs: Inputs) -> Network:
    """The network with the running statistics of its batch normalisations re-estimated, everything else as it is.

    Each layer's mean and (unbiased) variance become those of what reaches it on `inputs`, in eval mode, with the new
    statistics of the layers before it: exactly where all inputs fit into one pass, else pooled over the passes, in
    each of which layers divide by the pass's own statistics.

    Args:
        net: Any network; one without such layers is returned as it is.
        inputs: Unlabelled, [examples, ...] or as the network takes them. Some hundreds suffice.

    Returns:
        The network with other buffers.

    Raises:
        InputError: A layer that keeps no running statistics, or one that sees fewer than two values per channel.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.BatchNorm1d(1))
        >>> renormalised(net, torch.tensor([[1.0], [3.0], [5.0]])).buffers["running_mean"]
        tensor([3.])

    Source: Izmailov et al., 2018 (statistics of averaged weights); Jordan et al., 2023 (of interpolated ones).

    Not guaranteed: statistics of layers that compute them by themselves, without torch's batch normalisation, or of
    instance normalisation; those stay.
    """
    _check(net)
    rows = net.port.rows(inputs).to(net.device)
    if not net.buffers:
        return net
    if not len(rows):
        raise InputError("renormalised(inputs)", "one input or more", "none")
    if not bool(rows.isfinite().all()):
        raise InputError("renormalised(inputs)", "finite inputs", "NaN or infinity", "Leave these inputs out.")
    pooled: dict[str, tuple[float, Tensor, Tensor]] = {}  # buffer name -> values per channel, mean, sum of squares
    seen: dict[str, str] = {}

    def note(layer: str, mean_name: str, variance_name: str, count: int, mean: Tensor, squares: Tensor) -> None:
        if count < 2:
            expected = f"inputs that give layer {layer!r} two values per channel or more"
            raise InputError("renormalised(inputs)", expected, f"{len(rows)} inputs")
        before, old, spread = pooled.get(mean_name, (0.0, torch.zeros_like(mean), torch.zeros_like(mean)))
        total = before + count
        apart = mean - old
        spread = spread + squares + apart**2 * (before * count / total)
        pooled[mean_name], seen[mean_name] = (total, old + apart * (count / total), spread), variance_name

    passes = ceil(len(rows) / net.at_once(rows))
    for some in rows.tensor_split(passes):
        _watched(net, some, note)
    buffers: dict[str, Tensor] = {}
    for name, (total, mean, squares) in pooled.items():
        buffers[name] = mean.to(net.buffers[name])
        buffers[seen[name]] = (squares / (total - 1)).to(net.buffers[seen[name]])
    return net.with_weights({}, buffers) if buffers else net


def in_batches(net: Network) -> Callable[[Tensor, Weights], Tensor]:
    """The network as a function of inputs and weights in which batch normalisation uses the statistics of the batch.

    For training points of a path, whose running statistics nobody knows. Everything else is in eval mode.

    Args:
        net: Any network; its shared module is not touched.
    """
    module = net.to_module()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train()
    written_out = steps_matter(net.module, net.device)

    def forward(rows: Tensor, weights: Weights) -> Tensor:
        buffers = {name: tensor.clone() for name, tensor in net.buffers.items()}

        def called(*args: Tensor, **kwargs: Tensor) -> Any:
            return functional_call(module, (weights, buffers), args, kwargs)

        with plain_kernels(recurrence=written_out):
            outputs: Tensor = net.port(called, rows)
        return outputs

    return forward


def _check(net: Network) -> None:
    for name, part in net.module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise InputError(
                f"layer {name!r}",
                "batch normalisation with running statistics",
                "one that always uses the statistics of the batch",
                "Build it with track_running_stats=True; what it computes for an input depends on the others.",
            )


def _watched(net: Network, rows: Tensor, note: Callable[..., None]) -> None:
    """Run eval mode with batch normalisation by the statistics of `rows`; they are noted layer by layer."""
    buffers = {name: tensor.clone() for name, tensor in net.buffers.items()}
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in buffers.items()}

    def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        if not tag.split(" ")[0].removeprefix("aten::").startswith(_KINDS):
            return
        values, scale, shift, mean, variance = args[:5]
        place = None if mean is None else names.get(mean.untyped_storage().data_ptr())
        if place is None or variance is None:
            return  # per example (instance normalisation), or not by buffers
        layer = place.rpartition(".")[0]
        over = [axis for axis in range(values.ndim) if axis != 1]
        wide = values.double() if values.dtype is torch.float64 else values.float()
        count = values.numel() // max(1, values.shape[1])
        centre = wide.mean(over, keepdim=True)
        around = wide - centre
        squares = around.square().sum(over, keepdim=True)
        note(
            layer,
            place,
            names[variance.untyped_storage().data_ptr()],
            count,
            centre.flatten().double(),
            squares.flatten().double(),
        )
        epsilon = next(value for value in reversed(args) if isinstance(value, float))
        normal = around * (squares / max(1, count - 1) + epsilon).rsqrt()
        shape = centre.shape
        if scale is not None:
            normal = normal * scale.view(shape)
        output.copy_(normal if shift is None else normal + shift.view(shape))

    written_out = steps_matter(net.module, net.device)
    with plain_kernels(recurrence=written_out), torch.no_grad(), Watch(seen):
        net.evaluate(rows, net.weights, buffers)
