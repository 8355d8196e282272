"""What must not change: fingerprints of arguments and of the global state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from planaria.core.network import Network
from planaria.core.trees import digest
from planaria.measure.task import Task


def fingerprint(thing: object) -> object:
    """Everything about a module, network, task or tensor that an operator could change without saying so."""
    if isinstance(thing, Tensor):
        data = None if thing.is_meta else hashlib.sha256(_bytes(thing)).hexdigest()
        grad = None if not thing.is_leaf or thing.grad is None else fingerprint(thing.grad)
        return (id(thing), tuple(thing.shape), thing.dtype, thing.requires_grad, thing._version, data, grad)
    if isinstance(thing, nn.Module):
        return {
            name: (
                id(part),
                part.training,
                {key: fingerprint(value) for key, value in part._parameters.items() if value is not None},
                {key: fingerprint(value) for key, value in part._buffers.items() if value is not None},
                [len(getattr(part, hooks)) for hooks in sorted(vars(part)) if hooks.endswith("hooks")],
                sorted(vars(part)),
            )
            for name, part in thing.named_modules()
        }
    if isinstance(thing, Network):
        parts = (thing.weights, thing.buffers, thing.plasticity)
        values = [{name: fingerprint(tensor) for name, tensor in part.items()} for part in parts]
        return (
            fingerprint(thing.module),
            values,
            None if thing.inputs is None else fingerprint(thing.inputs),
        )
    if isinstance(thing, Task):
        return {name: (fingerprint(data.inputs), fingerprint(data.targets)) for name, data in thing.splits.items()}
    raise TypeError(type(thing))


def world() -> object:
    """Global state that no function of the package may leave changed."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the legacy global generator is what must not move
    return (
        torch.get_rng_state().numpy().tobytes(),
        (kind, np.asarray(keys).tobytes(), rest),
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


@contextmanager
def untouched(*things: object) -> Iterator[None]:
    """Fails if anything about the things, or the global state, is different afterwards, exception or not."""
    before = [fingerprint(thing) for thing in things], world()
    try:
        yield
    finally:
        after_, now = [fingerprint(thing) for thing in things], world()
        assert after_ == before[0], "an argument was changed"
        assert now == before[1], "global state was changed"


def state(net: Network) -> tuple[str, str]:
    """Hash of weights and buffers, and of plasticity: what "the same network, bit for bit" means."""
    return net.sha256, digest(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in net.plasticity.items()}
    )


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
