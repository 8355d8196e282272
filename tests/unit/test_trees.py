"""Arithmetic on dictionaries of tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planaria.core.trees import digest, dot, either, equal, norm, subtract, zip_map

floats = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
trees = st.fixed_dictionaries({"a": floats.map(torch.tensor), "b": floats.map(lambda v: torch.tensor([v]))})


@settings(max_examples=40, deadline=None)
@given(trees, trees)
def test_trees_are_vectors(x: dict[str, Tensor], y: dict[str, Tensor]) -> None:
    flat = [torch.cat([t["a"], t["b"].flatten()]).double() for t in (x, y)]
    assert float(dot(x, y)) == pytest.approx(float(flat[0] @ flat[1]), rel=1e-9, abs=1e-6)
    assert float(norm(x)) == pytest.approx(float(flat[0].norm()), rel=1e-6)
    assert equal(subtract(x, y), {n: x[n] - y[n] for n in x})
    assert equal(zip_map(torch.add, x, y), zip_map(torch.add, y, x))


def test_inner_products_accumulate_in_double_precision() -> None:
    small = {"w": torch.full((10**6,), 1e-4)}
    assert float(dot(small, small)) == pytest.approx(1e-2, rel=1e-6)
    assert float(dot({"w": torch.tensor([1e30])}, {"w": torch.tensor([1e30])})) == pytest.approx(1e60, rel=1e-6)


def test_equality_is_of_bits_names_and_types() -> None:
    one = {"w": torch.tensor([1.0, math.nan])}
    assert equal(one, {"w": torch.tensor([1.0, math.nan])})
    assert not equal(one, {"w": torch.tensor([1.0, 2.0])})
    assert not equal(one, {"v": one["w"]})
    assert not equal(one, {"w": one["w"].double()})
    assert not equal(one, {"w": one["w"][:1]})
    assert not equal({"w": torch.tensor([math.inf])}, {"w": torch.tensor([torch.finfo(torch.float32).max])})
    assert not equal({"w": torch.tensor([math.nan])}, {"w": torch.tensor([0.0])})


def test_either_joins_entries_and_changes_neither() -> None:
    a, b = {"w": torch.tensor([True, False])}, {"w": torch.tensor([False, False]), "v": torch.tensor([True])}
    joined = either(a, b)
    assert joined["w"].tolist() == [True, False]
    assert joined["v"].tolist() == [True]
    assert a.keys() == {"w"}
    assert b["w"].tolist() == [False, False]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(()).expand(1, 1),
        torch.ones(()).expand(4, 3),
        torch.tensor(3.5),
        torch.zeros(0),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 2, 2, 2).to(memory_format=torch.channels_last),
        torch.ones(3, requires_grad=True),
    ],
    ids=lambda t: f"{tuple(t.shape)} {t.stride()} {t.dtype}",
)
def test_a_hash_depends_on_values_and_not_on_their_layout(tensor: Tensor) -> None:
    assert digest({"w": tensor}) == digest({"w": tensor.detach().clone(memory_format=torch.contiguous_format)})


def test_a_hash_depends_on_names_shapes_types_and_every_bit() -> None:
    base = torch.tensor([1.0, 2.0])
    others = [{"v": base}, {"w": base.double()}, {"w": base[None]}, {"w": torch.tensor([1.0, 2.0000002])}]
    assert len({digest(tree) for tree in [{"w": base}, *others]}) == 5
    assert digest({"w": torch.tensor([0.0])}) != digest({"w": torch.tensor([-0.0])})
    assert digest({"a": base, "b": base}) == digest({"b": base, "a": base})
