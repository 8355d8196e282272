"""Sidecar: its file, its size, what it recognises, and that a network is repaired from it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cases import NETWORKS, randomise, trained
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.weights import pack_weights
from planaria.repair.packing import prints_of
from planaria.repair.readers import readers, rows_of, spread
from planaria.repair.refit import Teacher, refit
from planaria.repair.sidecar import Sidecar, doubt, moment_of


def wide(kind: str = "mlp") -> tuple[Network, torch.Tensor]:
    """A network large enough that names and hashes take a small part of its sidecar, with inputs of low rank."""
    model: nn.Module
    rng = stream(0, "inputs")
    if kind == "mlp":
        model = nn.Sequential(nn.Linear(400, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 5))
        inputs = torch.randn(400, 12, generator=rng) @ torch.randn(12, 400, generator=rng) / 20
    else:
        model = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 16, 40),
            nn.ReLU(),
            nn.Linear(40, 5),
        )
        inputs = torch.randn(64, 2, 8, 8, generator=rng)
    randomise(model, 0)
    return Network.of(model, inputs), inputs


class Attention(nn.Module):
    """Self-attention that computes with time before examples, as torch's own does."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.attend(x, x, x, need_weights=False)[0]
        logits: torch.Tensor = self.head(mixed.mean(1))
        return logits


class Pixels(nn.Module):
    """A class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.say = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.say(self.look(x).relu())
        return scores


def lesion(net: Network) -> list[Unit]:
    """Every other unit."""
    return [unit for unit in Anatomy.of(net).units() if unit.index % 2]


def distance(net: Network, other: Network, inputs: torch.Tensor) -> float:
    return float((net(inputs) - other(inputs)).square().mean())


@pytest.mark.parametrize(("kind", "limit"), [("mlp", 0.15), ("cnn", 0.5)])
def test_the_file_keeps_to_its_limit_and_repairs_nearly_as_well(tmp_path: Path, kind: str, limit: float) -> None:
    net, inputs = wide(kind)
    exact = Sidecar.of(net, inputs)
    place = tmp_path / "net.sidecar.safetensors"
    place.write_bytes(exact.pack())
    assert place.stat().st_size <= limit * len(pack_weights(net, {}))
    read = Sidecar.load(place)
    assert read.steps, "the copy of the weights fits at this size"
    hurt = silence(net, Anatomy.of(net).entries(lesion(net)).all)
    before = distance(net, hurt, inputs)
    after = [distance(net, refit(hurt, lesion(net), source).network, inputs) for source in (exact, read)]
    assert after[0] < 0.5 * before
    assert after[1] < 0.7 * before


@pytest.mark.parametrize("layers", [4, 12])
def test_many_names_do_not_push_the_file_over_its_limit(layers: int) -> None:
    part = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(part, layers, enable_nested_tensor=False)
    inputs = torch.randn(40, 6, 64, generator=stream(0, "inputs"))
    net = Network.of(model, inputs)
    content = Sidecar.of(net, inputs).pack({"planaria.network": "a/long/way/to/the/file.py:Encoder"})
    size = len(pack_weights(net, {}))
    assert 0.13 * size < len(content) <= 0.15 * size


def test_a_sidecar_read_back_is_the_packed_one(tmp_path: Path) -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed()
    place = tmp_path / "s.safetensors"
    place.write_bytes(packed.pack({"made by": "test"}))
    read = Sidecar.load(place)
    assert read.about == packed.about
    assert read.sha256 == net.sha256
    for name, moment in packed.moments.items():
        assert torch.allclose(read.moments[name], moment, rtol=1e-6)
    for name, weight in packed.weights.items():
        assert torch.allclose(read.weights[name], weight, rtol=1e-5)
    assert packed.packed() is packed
    assert packed.pack() == Sidecar.of(net, inputs).pack()


def test_the_whole_spectrum_in_eight_bits_is_nearly_exact() -> None:
    net, inputs = wide()
    exact = Sidecar.of(net, inputs)
    packed = exact.packed(3.0)
    for name, moment in exact.moments.items():
        assert float((packed.moments[name] - moment).norm() / moment.norm()) < 0.01
        assert packed.factors[name].explained > 0.999999


def test_half_a_rounding_step_is_all_that_stored_weights_are_off() -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed()
    for name, step in packed.steps.items():
        assert bool(((packed.weights[name] - net.weights[name]).abs() <= step * 1.001).all())


def test_a_sidecar_knows_its_network_in_spite_of_the_lesion() -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed()
    lost = Anatomy.of(net).entries(lesion(net)).all
    packed.check(net)
    packed.check(silence(net, lost), lost)
    with pytest.raises(InputError, match="rows that the lesion spares are others"):
        packed.check(silence(net, lost))
    other = nn.Sequential(nn.Linear(400, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 5))
    randomise(other, 1)
    with pytest.raises(InputError, match="sidecar of this very checkpoint"):
        packed.check(silence(Network.of(other, inputs), lost), lost)
    with pytest.raises(InputError, match="no weight of that name and size"):
        packed.check(Network.of(nn.Linear(400, 5), inputs))


def test_one_changed_weight_of_a_damaged_network_is_noticed() -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed()
    lost = Anatomy.of(net).entries([Unit("0", 0), Unit("2", 0)]).all
    for name, place in (("0.weight", (5, 3)), ("2.weight", (7, 9)), ("4.bias", (2,))):
        changed = net.weights[name].clone()
        changed[place] += 0.5
        with pytest.raises(InputError, match=name):
            packed.check(silence(net.with_weights({name: changed}), lost), lost)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    net, inputs = wide()
    place = tmp_path / "s.safetensors"
    content = bytearray(Sidecar.of(net, inputs).pack())
    content[-100] ^= 4
    place.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Sidecar.load(place)
    place.write_bytes(pack_weights(net, {}))
    with pytest.raises(InputError, match="a sidecar"):
        Sidecar.load(place)
    with pytest.raises(InputError, match="nothing"):
        Sidecar.load(tmp_path / "absent.safetensors")


def test_moments_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed()
    broken = {n: replace(f, scales=f.scales * float("nan")) for n, f in packed.factors.items()}
    place = tmp_path / "s.safetensors"
    place.write_bytes(replace(packed, factors=broken).pack())
    with pytest.raises(InputError, match="finite numbers"):
        Sidecar.load(place)


def test_a_share_that_is_no_share_or_too_small_is_refused() -> None:
    net, inputs = wide()
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0"):
            Sidecar.of(net, inputs).packed(share)
    with pytest.raises(InputError, match="larger share"):
        Sidecar.of(net, inputs).packed(0.001)


def test_without_room_for_the_weights_they_are_read_before_they_are_silenced() -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed(0.08)
    assert not packed.steps, "no room at this share"
    fixed = refit(net, lesion(net), packed).network
    hurt = silence(net, Anatomy.of(net).entries(lesion(net)).all)
    assert distance(net, fixed, inputs) < 0.8 * distance(net, hurt, inputs)
    with pytest.raises(InputError, match="the weights of the dead units"):
        refit(hurt, lesion(net), packed)


def test_refit_says_what_it_changed_and_leaves_the_network_alone() -> None:
    net, inputs = wide()
    before = net.sha256
    units = [Unit("0", index) for index in range(9)]
    done = refit(net, units, Sidecar.of(net, inputs))
    assert done.refitted == ("2.weight", "2.bias")
    assert not done.unrepaired
    assert done.cost.examples == 0
    assert net.sha256 == before
    assert bool(Anatomy.of(net).dead(done.network)["0"][3])


def test_refit_names_layers_that_it_cannot_make_up_for() -> None:
    case = NETWORKS["transformer-post-norm"]
    net = case.network()
    branch = next(group for group in Anatomy.of(net).groups if not group.owners["outgoing"])
    done = refit(net, [Unit(branch.layer, 0)], Sidecar.of(net, case.inputs(64)))
    assert "no weights of their own" in done.unrepaired[branch.layer]
    assert refit(net, [Unit(branch.layer, 0)], Teacher(net, case.inputs(64))).unrepaired == {}


def test_refit_refuses_units_that_do_not_exist() -> None:
    net, inputs = wide()
    sidecar = Sidecar.of(net, inputs)
    with pytest.raises(AnatomyError, match="an index below 80"):
        refit(net, [Unit("0", 80)], sidecar)
    with pytest.raises(AnatomyError, match="a layer with units"):
        refit(net, [Unit("fc9", 0)], sidecar)
    assert refit(net, [], sidecar).refitted == ()


def test_a_second_refit_hardly_moves_anything() -> None:
    net, inputs = wide()
    for source in (Sidecar.of(net, inputs), Sidecar.of(net, inputs).packed()):
        once = refit(net, lesion(net), source).network
        twice = refit(once, lesion(net), source).network
        scale = distance(net, once, inputs)
        assert distance(once, twice, inputs) < 0.01 * scale


def test_refits_after_each_of_two_hits_equal_one_refit_of_both() -> None:
    net, inputs = wide()
    sidecar = Sidecar.of(net, inputs)
    first, second = lesion(net)[:30], lesion(net)[30:]
    stepwise = refit(refit(net, first, sidecar).network, first + second, sidecar).network
    at_once = refit(net, first + second, sidecar).network
    assert distance(stepwise, at_once, inputs) < 0.01 * distance(net, at_once, inputs)


def test_importance_counts_inputs_as_often_as_it_says() -> None:
    net, inputs = wide("cnn")
    few = inputs[:6]
    times = torch.tensor([1, 2, 1, 1, 3, 1])
    weighted = Sidecar.of(net, few, importance=times.double())
    repeated = Sidecar.of(net, few.repeat_interleave(times, 0))
    for name, moment in repeated.moments.items():
        assert torch.allclose(weighted.moments[name], moment, rtol=1e-4, atol=1e-6)
    for wrong in (torch.ones(5), -torch.ones(6), torch.zeros(6), torch.full((6,), float("nan"))):
        with pytest.raises(InputError, match="importance"):
            Sidecar.of(net, few, importance=wrong)


@pytest.mark.parametrize("form", ["sidecar", "teacher"])
def test_importance_counts_examples_where_time_comes_before_them(form: str) -> None:
    model = Attention()
    randomise(model, 0)
    inputs = torch.randn(40, 5, 6, generator=stream(0, "inputs"))
    net, times = Network.of(model, inputs), torch.arange(40) % 4 + 1
    units, again = [Unit("attend", 0)], inputs.repeat_interleave(times, 0)
    sources: list[Sidecar | Teacher]
    if form == "sidecar":
        sources = [Sidecar.of(net, inputs, times), Sidecar.of(net, again)]
        moments = [source.moments["attend.out_proj.weight"] for source in sources if isinstance(source, Sidecar)]
        assert torch.allclose(moments[0], moments[1], rtol=1e-4, atol=1e-6)
    else:
        sources = [Teacher(net, inputs, times), Teacher(net, again)]
    weighted, repeated = (refit(net, units, source, ridge=1e-3).network for source in sources)
    assert distance(weighted, repeated, inputs) < 1e-6 * distance(net, repeated, inputs)


def test_rows_that_belong_to_no_example_all_count_the_same() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heard = torch.softmax(self.ask(x.mean(0)) @ x.transpose(1, 2), -1) @ x
            scores: torch.Tensor = self.head(heard.mean(1))
            return scores

    model = Mixed()
    randomise(model, 0)
    inputs = torch.randn(20, 4, 6, generator=stream(0, "inputs"))
    net = Network.of(model, inputs)
    found, _ = readers(net)
    order, cost = rows_of(net, found, inputs)
    assert "ask.weight" in found and "ask.weight" not in order
    assert order["head.weight"] == "together"
    assert (cost.examples, cost.forward_passes) == (6, 2)
    assert spread(torch.rand(20), 3, order.get("ask.weight")).tolist() == [1.0, 1.0, 1.0]  # type: ignore[union-attr]


def test_doubt_of_many_positions_is_their_mean() -> None:
    outputs = torch.randn(4, 3, 5, 5, generator=stream(0, "outputs"))
    flat = outputs.permute(0, 2, 3, 1).reshape(100, 3)
    expected = doubt(flat, least=0.0).view(4, 25).mean(1)
    assert torch.allclose(doubt(outputs, least=0.0), expected)
    model = Pixels()
    randomise(model, 0)
    inputs = torch.randn(20, 1, 5, 5, generator=stream(0, "inputs"))
    assert Sidecar.of(Network.of(model, inputs), inputs, doubt(Network.of(model)(inputs))).moments
    with pytest.raises(InputError, match="class scores"):
        doubt(torch.zeros(4))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_another_precision_are_recognised_and_repaired(tmp_path: Path, kind: torch.dtype) -> None:
    net, inputs = wide()
    small = Network.of(net.to_module().to(kind), inputs.to(kind))
    place = tmp_path / "s.safetensors"
    place.write_bytes(Sidecar.of(small, inputs.to(kind)).pack(share=0.5))
    read = Sidecar.load(place)
    assert read.steps
    lost = Anatomy.of(small).entries(lesion(small)).all
    hurt = silence(small, lost)
    read.check(hurt, lost)
    before = distance(small, hurt, inputs.to(kind))
    for source in (read, Teacher(small, inputs.to(kind))):
        assert distance(small, refit(hurt, lesion(small), source).network, inputs.to(kind)) < 0.5 * before


def test_moments_of_half_precision_are_summed_in_single() -> None:
    features = torch.rand(1, 5000, 3, generator=stream(0, "features")).half() * 100
    moment = moment_of(features, None)
    assert torch.allclose(moment[0, :3, :3], features[0].double().T @ features[0].double(), rtol=1e-5)


def test_the_sidecar_of_another_network_is_refused_before_it_does_harm() -> None:
    net, inputs = wide()
    other = nn.Sequential(nn.Linear(400, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 5))
    randomise(other, 1)
    with pytest.raises(InputError, match="sidecar of this very checkpoint"):
        refit(Network.of(other, inputs), lesion(net), Sidecar.of(net, inputs))


def test_a_change_of_a_surviving_weight_is_noticed_by_a_sidecar_that_is_not_packed_too() -> None:
    net, inputs = wide()
    lost = Anatomy.of(net).entries(lesion(net)).all
    changed = net.weights["2.weight"].clone()
    changed[0, 0] += 1e-3
    with pytest.raises(InputError, match=r"2\.weight"):
        Sidecar.of(net, inputs).check(silence(net.with_weights({"2.weight": changed}), lost), lost)


def test_other_normalisation_statistics_are_another_network() -> None:
    net, inputs = wide("cnn")
    packed = Sidecar.of(net, inputs).packed()
    name = next(name for name in net.buffers if name.endswith("running_var"))
    count = next(name for name in net.buffers if name.endswith("num_batches_tracked"))
    packed.check(net.with_weights({}, {count: net.buffers[count] + 1}))
    with pytest.raises(InputError, match="statistics"):
        packed.check(net.with_weights({}, {name: net.buffers[name] * 1.1}))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1)])
def test_weights_without_entries_or_without_bytes_of_their_own_have_hashes(shape: tuple[int, int]) -> None:
    assert len(prints_of(torch.zeros(()).expand(shape))) == shape[0]


def test_inputs_that_the_network_cannot_read_are_refused_by_name() -> None:
    net, _ = wide()
    with pytest.raises(InputError, match=r"Sidecar\.of\(inputs\).*\[400\].*\[399\]"):
        Sidecar.of(net, torch.zeros(8, 399))


def test_a_second_hit_without_stored_weights_keeps_what_the_first_refit_has_made_good() -> None:
    net, inputs = wide()
    packed = Sidecar.of(net, inputs).packed(0.08)
    assert not packed.steps
    first, second = lesion(net)[::2], lesion(net)[1::2]
    once = refit(net, first, packed).network
    twice = refit(once, [*first, *second], packed).network
    at_once = refit(net, [*first, *second], packed).network
    assert distance(twice, net, inputs) < 1.5 * distance(at_once, net, inputs)


def test_layers_that_are_not_repaired_come_in_the_order_of_the_lesion() -> None:
    case = NETWORKS["residual"]
    net = case.network()
    units = [Unit(layer, 0) for layer in ("conv3", "stem", "down", "conv2")]
    assert [*refit(net, units, Sidecar.of(net, case.inputs(16))).unrepaired] == ["conv3", "stem", "down", "conv2"]


def test_what_is_not_in_the_file_does_not_count_for_its_limit() -> None:
    net, inputs = wide()
    module = net.to_module()
    module.register_buffer("table", torch.zeros(10**5), persistent=False)
    other = Network.of(module, inputs)
    assert Sidecar.of(other, inputs).about["bytes"] == Sidecar.of(net, inputs).about["bytes"]


def test_importance_of_a_teacher_counts_the_same_way() -> None:
    net, inputs = wide()
    few, times = inputs[:100], torch.arange(100) % 3 + 1
    hurt = silence(net, Anatomy.of(net).entries(lesion(net)).all)
    weighted = refit(hurt, lesion(net), Teacher(net, few, times.double()), ridge=1e-3).network
    repeated = refit(hurt, lesion(net), Teacher(net, few.repeat_interleave(times, 0)), ridge=1e-3).network
    assert distance(weighted, repeated, inputs) < 1e-4 * distance(net, repeated, inputs)


def test_doubt_is_largest_where_the_classes_are_level_and_has_mean_one() -> None:
    outputs = torch.tensor([[5.0, 0.0, 0.0], [1.0, 0.9, 0.8], [0.0, 3.0, 2.9]])
    weights = doubt(outputs, least=0.0)
    assert weights.argmax() == 1
    assert weights.argmin() == 0
    assert float(weights.mean()) == pytest.approx(1.0)


def test_a_sidecar_file_rescues_the_digits() -> None:
    net, task = trained("digits")
    packed = Sidecar.of(net, task.train.inputs).packed(1.0)
    units = [u for u in Anatomy.of(net).units() if u.index % 2]
    hurt = silence(net, Anatomy.of(net).entries(units).all)
    fixed = refit(hurt, units, packed).network
    assert task.score(fixed) > task.score(hurt) + 0.1


def test_a_sidecar_makes_an_example_of_what_the_network_takes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.head(torch.relu(self.embed(ids) * mask[..., None]).sum(1) * scale)
            return made

    ids = torch.randint(9, (20, 5), generator=stream(0, "ids"))
    given = {"ids": ids, "mask": (ids > 2).long(), "scale": torch.rand(20, 1, generator=stream(0, "scale"))}
    model = Two()
    randomise(model, 0)
    net = Network.of(model, given)
    sidecar = Sidecar.of(net, net.port.rows(given))
    example = sidecar.example()
    assert isinstance(example, dict)
    assert {name: (tuple(t.shape), t.dtype) for name, t in example.items()} == {
        name: ((2, *t.shape[1:]), t.dtype) for name, t in given.items()
    }
    assert bool((example["mask"] == 1).all()) and bool((example["ids"] == 0).all())
    again = Network.of(net.to_module(), example)
    assert [group.layer for group in Anatomy.of(again).groups] == [group.layer for group in Anatomy.of(net).groups]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
def test_the_example_of_a_network_of_one_tensor_is_one(kind: torch.dtype) -> None:
    sidecar = Sidecar({}, {}, 1, {}, about={"shape": [3], "type": str(kind).removeprefix("torch.")})
    example = sidecar.example()
    assert isinstance(example, torch.Tensor)
    assert (example.shape, example.dtype) == ((2, 3), kind)
