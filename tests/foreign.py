"""A device that is not there: tensors that live away, with the rules of a GPU and the numbers of the CPU.

Whoever mixes tensors of two devices, draws on one from a generator of the other, or reads memory that is not the
CPU's, gets the error that a GPU would give. Composite operations (attention, recurrence) take torch's neutral way
there, often another one than on the CPU, as they do on a GPU.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor
from torch.optim import optimizer
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

AWAY = torch.device("lazy", 0)
"""The one device type that torch knows everywhere, and that needs neither kernels nor threads of its own."""


class Clockwork:
    """What torch asks of a device's module, and how often it was waited for."""

    waited = 0

    def synchronize(self, device: object = None) -> None:
        self.waited += 1


# The index may be on the CPU, whatever is indexed; the other way round torch refuses.
_INDEXING = {"index", "index_put", "_index_put_impl", "_unsafe_index", "_unsafe_index_put"}
# A single number of the CPU may take part in these and in all that works entry by entry.
_NUMBERS_TOO = {"masked_fill", "index_fill", "fill", "where", "clamp", "lerp"}


class WrongDeviceError(RuntimeError):
    """What a GPU would refuse."""


class Away(Tensor):
    """A tensor on the device that is not there; its numbers are in `home`."""

    home: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, home: Tensor) -> Away:
        with torch.inference_mode(False):  # a view of what was made outside is made as outside
            self: Any = Tensor._make_wrapper_subclass(
                cls, home.shape, home.stride(), home.storage_offset(), dtype=home.dtype, device=AWAY
            )
        self.home = home
        return self

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Away({self.home!r})"

    def untyped_storage(self) -> Any:
        return self.home.untyped_storage()  # whether two share memory can be asked on any device

    def tolist(self) -> Any:
        return self.home.tolist()  # torch does not ask subclasses

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Foreign(TorchDispatchMode):
    """While it is on, `AWAY` can be used like any device.

    Example:
        with Foreign():
            net = Network.of(model).to(AWAY)
    """

    def __enter__(self) -> Any:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(list, device=...) is then made here and moved there
        torch.lazy = Clockwork()  # type: ignore[attr-defined]
        known = optimizer._get_fused_kernels_supported_devices
        self._fused = patch.object(optimizer, known.__name__, lambda: [*known(), AWAY.type])
        self._fused.start()
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._fused.stop()
        del torch.lazy  # type: ignore[attr-defined]
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_")
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Away) for tensor in tensors)
    wanted = kwargs.get("device")
    made_away = there if wanted is None else torch.device(wanted).type == AWAY.type
    if there and torch.Tag.inplace_view in func.tags:  # of the tensor in sight as well
        with no_dispatch():
            func(*args, **kwargs)
    if there and plain not in {"_to_copy", "copy"}:
        _check(func, plain, args, tensors)
    if any(isinstance(leaf, Generator) and leaf.device.type == "cpu" for leaf in leaves) and made_away:
        raise WrongDeviceError(f"{func}: Expected a '{AWAY.type}' device type for generator but found 'cpu'")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")} if made_away else kwargs
    results = func(
        *tree_map_only(Away, lambda tensor: tensor.home, args), **tree_map_only(Away, lambda t: t.home, kwargs)
    )
    if func._schema.is_mutable:
        return _given_back(args, kwargs, results)
    if not made_away:
        return results
    return tree_map_only(Tensor, Away, results)


def _given_back(args: Any, kwargs: dict[str, Any], results: Any) -> Any:
    """Results of an operation that writes into its arguments: those arguments themselves."""
    given = {id(leaf.home): leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Away)}
    if not given:
        return results
    return tree_map_only(Tensor, lambda tensor: given[id(tensor)] if id(tensor) in given else Away(tensor), results)


def _check(func: Any, plain: str, args: Any, tensors: list[Tensor]) -> None:
    """What a GPU refuses to do with tensors of two devices."""
    if plain in _INDEXING:
        # self and values on one device; the places on it or on the CPU
        places = [place for place in args[1] if place is not None]
        strangers = places if not isinstance(args[0], Away) else []
        values = [args[2]] if len(args) > 2 else []
        strangers = [t for t in strangers if isinstance(t, Away)]
        strangers += [t for t in values if isinstance(t, Away) != isinstance(args[0], Away) and t.ndim > 0]
    else:
        lenient = torch.Tag.pointwise in func.tags or plain in _NUMBERS_TOO or plain.startswith("_foreach")
        strangers = [t for t in tensors if not isinstance(t, Away) and not (lenient and t.ndim == 0)]
    if strangers:
        shapes = [f"{list(t.shape)} {'away' if isinstance(t, Away) else 'cpu'}" for t in tensors]
        raise WrongDeviceError(f"{func}: Expected all tensors to be on the same device, found {', '.join(shapes)}")
