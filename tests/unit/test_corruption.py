"""Corruptions do what they say, within the range of the data, the same each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.measure.corruption import CORRUPTIONS, KINDS, Corruption
from purity import untouched

IMAGES = torch.rand(40, 3, 8, 6, generator=stream(0, "images")) * 3 - 1
VECTORS = torch.randn(40, 20, generator=stream(0, "vectors"))
TOKENS = torch.randint(5, 25, (40, 12), generator=stream(0, "tokens"))
KIND = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: f"{c.name} {c.strength:g}")


def fitting(corruption: Corruption) -> list[Tensor]:
    return [inputs for inputs in (IMAGES, VECTORS, TOKENS) if corruption.suits(inputs)]


def test_each_kind_of_input_has_its_corruptions() -> None:
    names = [{c.name for c in CORRUPTIONS if c.suits(inputs)} for inputs in (IMAGES, VECTORS, TOKENS)]
    real = {"gaussian noise", "contrast", "pixel dropout"}
    assert names == [real | {"box blur"}, real, {"token replacement"}]


@KIND
def test_it_is_the_same_for_the_same_stream_and_touches_nothing(corruption: Corruption) -> None:
    assert eval(repr(corruption)) == corruption
    for inputs in fitting(corruption):
        with untouched(inputs):
            one, two = (corruption(inputs, stream(1, "x")) for _ in range(2))
        assert torch.equal(one, two) and not torch.equal(one, inputs)
        assert one.shape == inputs.shape and one.dtype == inputs.dtype
        assert one.min() >= inputs.min() and one.max() <= inputs.max()


@KIND
def test_a_stronger_one_changes_more(corruption: Corruption) -> None:
    for inputs in fitting(corruption):
        weak, strong = (
            float((Corruption(corruption.name, strength)(inputs, stream(1, "x")) != inputs).double().mean())
            if corruption.name in {"pixel dropout", "token replacement"}
            else float((Corruption(corruption.name, strength)(inputs, stream(1, "x")) - inputs).abs().mean())
            for strength in (0.1, 0.6)
        )
        assert strong > weak > 0


def test_noise_has_the_stated_size() -> None:
    # Far from the ends of the range nothing is cut off.
    inputs = torch.cat([torch.zeros(20_000, 1), torch.full((200, 1), 50.0), torch.full((200, 1), -50.0)])
    added = Corruption("gaussian noise", 0.25)(inputs, stream(0, "x"))[:20_000]
    assert float(added.std() / inputs.std(correction=0)) == pytest.approx(0.25, rel=0.03)


def test_noise_scales_with_the_data() -> None:
    noise = Corruption("gaussian noise", 0.5)
    moved, scaled = noise(VECTORS, stream(0, "x")) * 4 + 1, noise(VECTORS * 4 + 1, stream(0, "x"))
    assert torch.allclose(moved, scaled, atol=1e-4)


def test_blur_is_the_mean_over_the_box() -> None:
    blurred = Corruption("box blur", 0.5)(IMAGES, stream(0, "x"))  # half of 6 pixels: 2 to each side
    assert float(blurred[3, 1, 4, 3]) == pytest.approx(float(IMAGES[3, 1, 2:7, 1:6].mean()), abs=1e-6)
    flat = torch.full((2, 1, 5, 5), 0.7)
    assert torch.allclose(Corruption("box blur", 0.2)(flat, stream(0, "x")), flat)


def test_contrast_keeps_the_mean_and_shrinks_the_spread() -> None:
    dull = Corruption("contrast", 0.75)(VECTORS, stream(0, "x"))
    assert torch.allclose(dull.mean(1), VECTORS.mean(1), atol=1e-6)
    assert torch.allclose(dull.std(1), 0.25 * VECTORS.std(1), atol=1e-6)


def test_pixel_dropout_takes_the_stated_share_of_whole_pixels() -> None:
    lost = Corruption("pixel dropout", 0.3)(IMAGES, stream(0, "x")) != IMAGES
    assert bool((lost == lost[:, :1]).all())
    assert float(lost.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert Corruption("pixel dropout", 1.0)(VECTORS, stream(0, "x")).unique().tolist() == pytest.approx(
        [float(VECTORS.mean())]
    )


def test_tokens_are_replaced_by_tokens_of_the_data() -> None:
    replaced = Corruption("token replacement", 1.0)(TOKENS, stream(0, "x"))
    assert set(replaced.flatten().tolist()) <= set(TOKENS.flatten().tolist())
    # One in twenty draws the token that it had.
    assert float((replaced == TOKENS).double().mean()) == pytest.approx(1 / 20, abs=0.03)


def test_unknown_names_strengths_and_inputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"Corruption.name.*Did you mean contrast"):
        Corruption("contrst", 0.5)
    with pytest.raises(InputError, match=r"Corruption.strength: expected a number above 0"):
        Corruption("contrast", 0.0)
    with pytest.raises(InputError, match=r"expected inputs of images"):
        Corruption("box blur", 0.5)(VECTORS, stream(0, "x"))
    with pytest.raises(InputError, match=r"expected inputs of tokens"):
        Corruption("token replacement", 0.5)(VECTORS, stream(0, "x"))
    assert all(kind.meaning for kind in KINDS.values())
