"""Dreams: synthetic inputs that share nothing with real ones but their values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import randomise, trained
from planaria.core.anatomy import Anatomy, silence
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.port import Layout
from planaria.core.streams import stream
from planaria.repair.dream import dream
from planaria.repair.refit import Teacher, refit


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 12), (2, 4, 6, 6), (64,), (7,), (20, 3)])
def test_dreams_have_the_shape_and_the_values_of_what_they_are_like(shape: tuple[int, ...]) -> None:
    like = torch.rand(2, *shape, generator=stream(0, "like"))
    made = dream(like, 5, stream(1, "dream"))
    assert made.shape == (5, *shape)
    assert made.dtype == like.dtype
    known = set(like.flatten().tolist())
    assert set(made.flatten().tolist()) <= known
    assert float(made.std()) == pytest.approx(float(like.std()), rel=0.15)


def test_features_of_a_sequence_keep_their_own_values() -> None:
    like = torch.rand(4, 30, 2, generator=stream(0, "like")) + torch.tensor([0.0, 10.0])
    made = dream(like, 6, stream(1, "dream"))
    assert float(made[..., 0].max()) < 1.0
    assert float(made[..., 1].min()) > 9.0


def test_neighbouring_pixels_are_alike() -> None:
    made = dream(torch.rand(2, 1, 32, 32, generator=stream(0, "like")), 20, stream(1, "dream"))
    flat = made - made.mean()
    near = float((flat[..., 1:] * flat[..., :-1]).mean() / flat.square().mean())
    far = float((flat[..., 16:] * flat[..., :-16]).mean() / flat.square().mean())
    assert near > 0.5 > abs(far) + 0.2


def test_the_same_stream_dreams_the_same() -> None:
    like = torch.rand(2, 1, 9, 9, generator=stream(0, "like"))
    assert torch.equal(dream(like, 3, stream(2, "x")), dream(like, 3, stream(2, "x")))
    assert not torch.equal(dream(like, 3, stream(2, "x")), dream(like, 3, stream(3, "x")))


def test_where_nothing_is_known_the_noise_has_unit_variance() -> None:
    made = dream(torch.zeros(2, 1, 16, 16), 50, stream(0, "dream"))
    assert float(made.std()) == pytest.approx(1.0, abs=1e-3)


def test_tokens_are_drawn_from_the_vocabulary() -> None:
    like = torch.tensor([[0, 4, 2]])
    assert set(dream(like, 200, stream(0, "x")).flatten().tolist()) == {0, 1, 2, 3, 4}
    assert int(dream(like, 200, stream(0, "x"), vocabulary=9).max()) == 8
    assert dream(like, 2, stream(0, "x")).dtype == torch.long


def test_nothing_to_be_like_and_nothing_to_make_are_refused() -> None:
    for like, count in ((torch.zeros(0, 3), 4), (torch.zeros(2, 3), 0)):
        with pytest.raises(InputError, match="dream"):
            dream(like, count, stream(0, "x"))


def test_inputs_without_numbers_and_a_vocabulary_without_tokens_are_refused() -> None:
    with pytest.raises(InputError, match=r"dream\(like\)"):
        dream(torch.zeros(2, 0), 3, stream(0, "x"))
    with pytest.raises(InputError, match=r"dream\(vocabulary\)"):
        dream(torch.tensor([[-1, -2]]), 3, stream(0, "x"))


def test_a_single_number_is_dreamt_without_a_variance() -> None:
    assert bool(dream(torch.zeros(2, 1), 1, stream(0, "x")).isfinite().all())


def test_a_network_is_repaired_from_dreams_alone() -> None:
    net, task = trained("digits")
    units = [unit for unit in Anatomy.of(net).units() if unit.index % 3 == 0]
    hurt = silence(net, Anatomy.of(net).entries(units).all)
    source = Teacher(net, dream(task.train.inputs[:2], 2048, stream(0, "dream")))
    assert task.score(refit(hurt, units, source).network) > task.score(hurt) + 0.05


def test_inputs_of_another_shape_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    randomise(model, 0)
    net = Network.of(model, torch.zeros(2, 4))
    units = Anatomy.of(net).units()[:2]
    with pytest.raises(InputError, match=r"Teacher\.inputs.*\[4\].*\[5\]"):
        refit(net, units, Teacher(net, torch.zeros(8, 5)))


def test_packed_rows_are_dreamt_part_by_part() -> None:
    ids = torch.randint(3, 9, (4, 6), generator=stream(0, "ids"))
    mask = (torch.arange(6) < torch.tensor([[2], [4], [5], [6]])).long()
    size = torch.rand(4, 1, generator=stream(0, "size"))
    given = {"ids": ids, "mask": mask, "size": size}
    layout = Layout.of(given)
    assert layout is not None
    made = layout.unpack(dream(layout.pack(given), 30, stream(1, "dream"), layout=layout))
    assert isinstance(made, dict)
    assert {tuple(row) for row in made["mask"].tolist()} <= {tuple(row) for row in mask.tolist()}
    assert int(made["ids"].max()) <= 8 and len({tuple(row) for row in made["ids"].tolist()}) > 4
    assert float(made["size"].min()) >= float(size.min())
    pair = Layout.of((ids, size))
    assert pair is not None
    assert dream(pair.pack((ids, size)), 3, stream(1, "dream"), layout=pair).shape == (3, 7)
