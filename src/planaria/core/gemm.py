"""Route of float32 matrix products on the CPU: torch's own library, or oneDNN where that is faster and as exact.

On some processors torch's own library reaches half the speed of oneDNN. The public switch to oneDNN is
`torch.backends.mkldnn.matmul.fp32_precision = "bf16"`, which allows lower precision and does not demand it: processors
without matrix units for bfloat16 compute in full float32 all the same, those with them (AMX) do not. So both routes
are tried once, for speed and for error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from planaria.core.streams import stream

DEFAULT, ONEDNN = "torch default", "oneDNN"

SIDE = 384
"""Rows and columns of the products that are timed."""

ROUNDS = 12
"""Times each route is timed; the best counts."""

GAIN = 1.5
"""How many times as fast oneDNN must be. Its last bits differ, so that noise must not decide: processors on which it
gains at all gain either some 1.1 (AMD Zen 4) or 2.2 (Zen 5)."""

ERROR = 1e-5
"""Largest error that is of float32 (measured: 1e-6), relative to the largest entry; of bfloat16 it is 1e-3."""


@dataclass(frozen=True)
class Route:
    """How float32 products are computed here, and what that was decided by.

    Attributes:
        name: "torch default" or "oneDNN".
        speeds: Route -> GFLOP/s of a product of two 384 x 384 matrices, with the threads torch had then.
        errors: Route -> largest error against double precision, relative to the largest entry of the product. A route
            that this build does not have is in neither.
    """

    name: str
    speeds: Mapping[str, float]
    errors: Mapping[str, float]


@cache
def fastest_route() -> Route:
    """The faster of the exact routes on this CPU; tried once per process, which takes some 30 ms.

    oneDNN is taken where it is 1.5 times as fast and all its errors stay below 1e-5 of the largest entry, for square
    and for narrow products, plain and transposed.

    Example:
        >>> fastest_route().name in ("torch default", "oneDNN")
        True
    """
    with torch.inference_mode():
        # Time of the thread does not run while other processes have the core; where it is coarse, any clock must do.
        fine = time.get_clock_info("thread_time").resolution < 1e-5
        clock = time.thread_time if fine else time.perf_counter
        errors = {}
        routes = {DEFAULT: None, ONEDNN: "bf16"} if _SWITCH.usable() else {DEFAULT: None}
        square, *others = _problems()
        for route, setting in routes.items():
            with _SWITCH.at(setting):
                errors[route] = max(_error(a, b) for a, b in (square, *others))
        best = dict.fromkeys(routes, float("inf"))
        for _ in range(ROUNDS):  # in turn, so that what else the machine does hits both
            for route, setting in routes.items():
                with _SWITCH.at(setting):
                    start = clock()
                    torch.mm(*square)
                    best[route] = min(best[route], clock() - start)
        speeds = {route: 2e-9 * SIDE**3 / seconds for route, seconds in best.items()}
    return Route(_choice(speeds, errors), speeds, errors)


@contextmanager
def fast_products(device: torch.device | str = "cpu") -> Iterator[Route | None]:
    """Compute float32 products by the fastest exact route for a while, forward and backward; then as before.

    Nothing happens on other devices, without oneDNN, and where somebody has asked torch for a precision himself.
    The switch is torch's and holds for all threads of the process: a thread that computes at the same time outside may
    take the other route, exact too. Threads that are inside at the same time share it; the last one out turns it off.

    Args:
        device: Where the products are computed.

    Yields:
        The route; None where nothing happens.

    Example:
        >>> import torch
        >>> with fast_products() as route:
        ...     torch.ones(2, 2) @ torch.ones(2, 2)
        tensor([[2., 2.],
                [2., 2.]])

    Source: torch's documentation of `torch.backends` (`fp32_precision`, since 2.9).

    Not guaranteed: the same last bits by both routes. Which is taken is the same in every process of one machine where
    their speeds differ clearly.
    """
    if torch.device(device).type != "cpu" or not _SWITCH.usable():
        yield None
        return
    route = fastest_route()
    with _SWITCH.at("bf16" if route.name == ONEDNN else None):
        yield route


@contextmanager
def route_of(device: torch.device | str, *, bitwise: bool) -> Iterator[str]:
    """Name of the route inside: the fastest exact one, or torch's own where bits count.

    Args:
        device: Where products are computed.
        bitwise: Whether bits count.
    """
    if bitwise:
        yield DEFAULT
        return
    with fast_products(device) as route:
        yield DEFAULT if route is None else route.name


def _choice(speeds: Mapping[str, float], errors: Mapping[str, float]) -> str:
    faster = ONEDNN in speeds and speeds[ONEDNN] >= GAIN * speeds[DEFAULT]
    return ONEDNN if faster and errors[ONEDNN] <= ERROR else DEFAULT


def _problems() -> list[tuple[Tensor, Tensor]]:
    """Factors to try: square, narrow, and one with both transposed."""
    rng = stream(0, "products")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float32, device="cpu")

    a, b = drawn(SIDE, SIDE), drawn(SIDE, SIDE)
    return [(a, b), (drawn(128, 300), drawn(300, 50)), (drawn(300, 64).t(), drawn(64, 300).t())]


def _error(a: Tensor, b: Tensor) -> float:
    exact = a.double() @ b.double()
    return float((torch.mm(a, b).double() - exact).abs().max() / exact.abs().max())


UNSET = "none"
"""Value of a switch that nobody has set. Only this is ever restored: what is read may be inherited from a switch for
all operations, and writing that back would be a setting of its own."""


class _Switch:
    """Torch's switch, shared by all who are inside at the same time: the last one out turns it off."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0

    def usable(self) -> bool:
        """Whether this torch has it with oneDNN behind it, and nobody else has set it."""
        mkldnn: Any = getattr(torch.backends, "mkldnn", None)
        if mkldnn is None or not mkldnn.is_available():
            return False
        return self._inside > 0 or getattr(getattr(mkldnn, "matmul", None), "fp32_precision", None) == UNSET

    @contextmanager
    def at(self, value: str | None) -> Iterator[None]:
        """At this value for a while; None leaves it alone."""
        if value is None:
            yield
            return
        matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            self._inside += 1
            matmul.fp32_precision = value
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    matmul.fp32_precision = UNSET


_SWITCH = _Switch()
