"""The route of matrix products: chosen by speed and error, in force only inside, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Thread

import pytest
import torch
from torch import nn

from planaria.core import gemm
from planaria.core.gemm import DEFAULT, ONEDNN, Route, fast_products, fastest_route

SWITCH = torch.backends.mkldnn.matmul
HAS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Route:
    """As on a machine where oneDNN is the faster one."""
    route = Route(ONEDNN, {DEFAULT: 100.0, ONEDNN: 200.0}, {DEFAULT: 4e-7, ONEDNN: 8e-7})
    monkeypatch.setattr(gemm, "fastest_route", lambda: route)
    return route


@contextmanager
def precision(value: str) -> Iterator[None]:
    SWITCH.fp32_precision = value
    try:
        yield
    finally:
        SWITCH.fp32_precision = "none"


def test_the_probe_measures_both_routes_and_errors_of_single_precision() -> None:
    route = fastest_route()
    assert route.speeds.keys() == route.errors.keys() and DEFAULT in route.speeds
    assert all(speed > 1 for speed in route.speeds.values())
    assert 0 < route.errors[DEFAULT] < gemm.ERROR
    assert route.errors[route.name] < gemm.ERROR
    assert fastest_route() is route
    assert SWITCH.fp32_precision == "none"


@pytest.mark.parametrize(
    ("speed", "error", "name"),
    [(2.2, 2.0, ONEDNN), (1.6, 1.0, ONEDNN), (1.1, 1.0, DEFAULT), (0.5, 1.0, DEFAULT), (8.0, 1000.0, DEFAULT)],
)
def test_a_route_must_be_clearly_faster_and_exact(speed: float, error: float, name: str) -> None:
    assert gemm._choice({DEFAULT: 100.0, ONEDNN: 100.0 * speed}, {DEFAULT: 1e-6, ONEDNN: 1e-6 * error}) == name


@pytest.mark.parametrize("speeds", [{DEFAULT: 100.0}, {DEFAULT: 100.0, ONEDNN: float("nan")}])
def test_without_a_second_route_the_first_is_taken(speeds: dict[str, float]) -> None:
    assert gemm._choice(speeds, dict.fromkeys(speeds, 1e-7)) == DEFAULT


def test_true_bfloat16_is_told_from_single_precision() -> None:
    for a, b in gemm._problems():
        exact = a.double() @ b.double()
        rounded = (a.bfloat16().float() @ b.bfloat16().float()).double()
        assert float((rounded - exact).abs().max() / exact.abs().max()) > 20 * gemm.ERROR


@HAS_ONEDNN
def test_the_switch_is_on_inside_and_off_again_outside(onednn: Route) -> None:
    with fast_products() as route:
        assert route is onednn
        assert SWITCH.fp32_precision == "bf16"
        with fast_products(torch.device("cpu")):
            assert SWITCH.fp32_precision == "bf16"
        assert SWITCH.fp32_precision == "bf16"
    assert SWITCH.fp32_precision == "none"


@HAS_ONEDNN
def test_an_exception_turns_the_switch_off_too(onednn: Route) -> None:
    with pytest.raises(ZeroDivisionError), fast_products():
        raise ZeroDivisionError
    assert SWITCH.fp32_precision == "none"


@HAS_ONEDNN
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_a_precision_that_somebody_has_set_is_respected(onednn: Route, value: str) -> None:
    with precision(value):
        with fast_products() as route:
            assert route is None and SWITCH.fp32_precision == value
        assert SWITCH.fp32_precision == value


@HAS_ONEDNN
def test_a_precision_inherited_from_all_operations_is_still_inherited_afterwards(onednn: Route) -> None:
    torch.backends.fp32_precision = "ieee"
    try:
        with fast_products() as route:
            assert route is None
    finally:
        torch.backends.fp32_precision = "none"
    assert SWITCH.fp32_precision == "none"


@HAS_ONEDNN
def test_nothing_happens_where_torchs_own_library_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Route(DEFAULT, {DEFAULT: 100.0, ONEDNN: 100.0}, {DEFAULT: 4e-7, ONEDNN: 8e-7})
    monkeypatch.setattr(gemm, "fastest_route", lambda: own)
    with fast_products() as route:
        assert route is own and SWITCH.fp32_precision == "none"


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_other_devices_are_left_alone(onednn: Route, device: str) -> None:
    with fast_products(device) as route:
        assert route is None and SWITCH.fp32_precision == "none"


@pytest.mark.parametrize("missing", ["build", "switch"])
def test_without_the_switch_nothing_happens(monkeypatch: pytest.MonkeyPatch, onednn: Route, missing: str) -> None:
    class Bare:
        """What an older or a smaller build of torch offers."""

        matmul = object()

        @staticmethod
        def is_available() -> bool:
            return missing == "switch"

    monkeypatch.setattr(torch.backends, "mkldnn", Bare())
    with fast_products() as route:
        assert route is None
    assert fastest_route.__wrapped__().speeds.keys() == {DEFAULT}


@HAS_ONEDNN
def test_the_last_thread_out_turns_the_switch_off(onednn: Route) -> None:
    both_in, one_out, seen = Barrier(2, timeout=10), Barrier(2, timeout=10), list[str]()

    def work(first: bool) -> None:
        with fast_products():
            both_in.wait()
            if not first:
                one_out.wait()
                seen.append(SWITCH.fp32_precision)
        if first:
            one_out.wait()

    threads = [Thread(target=work, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["bf16"] and SWITCH.fp32_precision == "none"


@HAS_ONEDNN
def test_products_and_gradients_inside_are_those_of_single_precision(onednn: Route) -> None:
    if fastest_route.__wrapped__().errors[ONEDNN] > gemm.ERROR:
        pytest.skip("this processor takes bfloat16 at its word")
    generator = torch.Generator().manual_seed(0)
    layer, inputs = nn.Linear(300, 60), torch.randn(128, 300, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(60, 300, generator=generator))

    def gradient(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        layer.zero_grad()
        layer(inputs).square().mean().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    with fast_products():
        ours = gradient(layer, inputs)
    exact = gradient(layer.double(), inputs.double())
    assert float((ours.double() - exact).abs().max()) <= gemm.ERROR * float(exact.abs().max())
