"""What compaction cuts out of which module, what it leaves, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures import Encoder, StackedHeads
from cases import NETWORKS
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RankedUnits
from planaria.measure.weights import load_weights, pack_weights
from planaria.sweep.compact import compact


def made(model: nn.Module, *shape: int) -> Network:
    """Network with random weights and example inputs."""
    rng = stream(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
    return Network.of(model, torch.randn(3, *shape, generator=rng))


def killed(net: Network, **units: list[int]) -> Network:
    """The network without some units; `_2` is layer "2"."""
    chosen = tuple(Unit(layer.removeprefix("_"), index) for layer, indices in units.items() for index in indices)
    return Damage(Silence(), RankedUnits(chosen)).at(1.0)(net, stream(0, "x"))


def apart(a: Network, b: Network, *shape: int) -> float:
    inputs = torch.randn(20, *shape, generator=stream(1, "inputs"))
    return float((a(inputs) - b(inputs)).abs().max())


def mlp(width: int = 7) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 3))


def test_an_mlp_loses_rows_biases_and_columns() -> None:
    net = killed(made(mlp(), 6), _0=[1, 4], _2=[0])
    small = compact(net)
    assert small.units_removed == 3 and small.removed == {"0": (1, 4), "2": (0,)}
    assert small.remaining == {"0": (0, 2, 3, 5, 6), "2": (1, 2, 3, 4)}
    assert small.parameters == 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3
    assert small.bytes == 4 * small.parameters and small.bytes_before == 4 * net.parameters
    sizes = [(part.in_features, part.out_features) for part in small.module if isinstance(part, nn.Linear)]
    assert sizes == [(6, 5), (5, 4), (4, 3)]
    assert torch.equal(small.network.weights["0.weight"], net.weights["0.weight"][[0, 2, 3, 5, 6]])
    assert not small.kept and apart(net, small.network, 6) < 1e-5


def test_a_cnn_loses_filters_norms_and_the_columns_behind_the_flattening() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net = killed(case.network(), _0=[3], _4=[0, 2], _8=[5])
    small = compact(net)
    module = small.module
    assert (module[0].out_channels, module[1].num_features, module[4].in_channels) == (3, 3, 3)
    assert (module[4].out_channels, module[5].num_features, module[8].in_features) == (3, 3, 27)
    assert torch.equal(module[5].running_var, net.buffers["5.running_var"][[1, 3, 4]])
    first, second = 2 * 3 * 9 + 3 + 2 * 3, 3 * 3 * 9 + 2 * 3
    assert small.parameters == first + second + 27 * 5 + 5 + 5 * 3 + 3
    assert not small.kept and apart(net, small.network, 2, 6, 6) < 1e-5


def test_a_depthwise_convolution_loses_groups_where_both_its_sides_are_dead() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    net = made(model, 1, 4, 4)
    small = compact(killed(net, _0=[1, 2], _2=[1, 3]))
    # Unit 3 of the first layer lives, but nothing reads it; unit 2 is dead, but its partner emits its bias.
    assert small.removed == {"0": (1, 3), "2": (1, 3)}
    middle = small.module[2]
    assert (middle.groups, middle.in_channels, middle.out_channels) == (2, 2, 2)
    assert list(small.kept) == ["0"] and "share" in small.kept["0"]


def test_a_unit_stuck_at_a_value_stays_and_one_stuck_at_zero_goes() -> None:
    net = made(mlp(), 6)
    site = RankedUnits((Unit("0", 2),))
    stuck = compact(Damage(StuckAt(0.5), site).at(1.0)(net, stream(0, "x")))
    assert stuck.units_removed == 0 and "stuck" in stuck.kept["0"]
    assert compact(Damage(StuckAt(0.0), site).at(1.0)(net, stream(0, "x"))).removed == {"0": (2,)}


def test_a_sigmoid_unit_goes_only_if_nothing_reads_it() -> None:
    net = made(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), 4)
    entries = Anatomy.of(net).entries([Unit("0", 1)])
    assert compact(silence(silence(net, entries.incoming), entries.shift)).units_removed == 0
    assert compact(silence(net, entries.outgoing)).removed == {"0": (1,)}


def test_a_silent_unit_that_may_learn_again_stays() -> None:
    net = made(mlp(), 6)
    passing = Damage(Silence(lasting=False), RankedUnits((Unit("0", 2),))).at(1.0)(net, stream(0, "x"))
    assert compact(passing).network is passing


def test_a_dead_gated_neuron_goes_with_its_gate_and_its_value() -> None:
    small = compact(killed(NETWORKS["gated"].network(), gated=[0, 3]))
    assert small.removed == {"gated": (0, 3)}
    assert [small.network.weights[f"{name}.weight"].shape[0] for name in ("gate", "up")] == [3, 3]
    assert small.network.weights["down.weight"].shape == (3, 3)


def test_of_a_dead_layer_one_unit_stays() -> None:
    small = compact(killed(made(mlp(), 6), _0=list(range(7)), _2=[1]))
    assert small.remaining["0"] == (0,) and small.removed["2"] == (1,)
    assert list(small.kept) == ["0"] and "one stays" in small.kept["0"]
    assert small.module[0].out_features == 1


def test_pins_of_what_remains_are_kept() -> None:
    pinned = torch.zeros(5, 7, dtype=torch.bool)
    pinned[2, 6] = True
    net = killed(made(mlp(), 6).pin({"2.weight": pinned}), _0=[0, 1])
    plasticity = compact(net).network.plasticity["2.weight"]
    assert plasticity.shape == (5, 5) and plasticity[2, 4] == 0 and int((plasticity == 0).sum()) == 1


def test_heads_go_where_no_module_fixes_their_number() -> None:
    dead = {"attention": [0], "W_in": [2]}
    small = compact(killed(made(StackedHeads(), 4, 5), **dead))
    assert small.removed == {"attention": (0,), "W_in": (2,)}
    assert small.network.weights["W_Q"].shape == (1, 8, 4)
    net = made(Encoder(pre=True), 4, 5)
    units = tuple(Unit(f"encoder.layers.0.{name}", 1) for name in ("self_attn", "linear1", "linear2"))
    fixed = compact(Damage(Silence(), RankedUnits(units)).at(1.0)(net, stream(0, "x")))
    assert fixed.removed == {"encoder.layers.0.linear1": (1,)}
    assert "made for its number of units" in fixed.kept["encoder.layers.0.self_attn"]
    assert "residual stream" in fixed.kept["encoder.layers.0.linear2"]


class FixedView(nn.Module):
    """Its forward knows the number of channels by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.relu(self.conv(x)).view(-1, 16))))


def test_a_layer_that_cannot_be_cut_does_not_keep_the_others() -> None:
    net = killed(made(FixedView(), 1, 4, 4), conv=[1], fc1=[0, 3])
    small = compact(net)
    assert small.removed == {"fc1": (0, 3)} and list(small.kept) == ["conv"]
    assert apart(net, small.network, 1, 4, 4) < 1e-5


class Averaging(nn.Module):
    """Its result depends on how many units there are, without an error where there are fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(x))
        return self.fc2(hidden / hidden.shape[-1])


def test_a_cut_that_would_change_the_outputs_is_not_made_even_if_the_examples_are_all_zero() -> None:
    net = killed(Network.of(made(Averaging(), 4).to_module(), torch.zeros(2, 4)), fc1=[1])
    small = compact(net)
    assert small.network is net and "apart" in small.kept["fc1"]


class Transposed(nn.Module):
    """A layer [in, out] that notes its width and uses the note, as some language models have."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nx, self.nf = nx, nf
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.empty(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


def test_widths_that_a_module_notes_are_set_right() -> None:
    net = killed(made(nn.Sequential(Transposed(3, 5), nn.GELU(), Transposed(5, 2)), 4, 3), _0=[0, 4])
    small = compact(net)
    assert (small.module[0].nf, small.module[2].nx, small.module[2].nf) == (3, 3, 2)
    assert apart(net, small.network, 4, 3) < 1e-5


def test_the_smaller_weights_load_into_a_smaller_architecture(tmp_path: Path) -> None:
    net = killed(made(mlp(), 6), _0=[0, 1, 2])
    path = tmp_path / "small.safetensors"
    path.write_bytes(pack_weights(compact(net).network, {}))
    model = mlp(width=4)
    load_weights(model, path)
    assert apart(net, Network.of(model), 6) < 1e-5


def test_the_smaller_module_can_be_trained() -> None:
    module = compact(killed(NETWORKS["cnn-batchnorm"].network(), _0=[0], _4=[1])).module.train()
    module(torch.randn(4, 2, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_record_is_plain() -> None:
    record = compact(killed(made(mlp(), 6), _0=[0, 1])).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["units_removed"] == 2 and record["kept"] == [] and record["difference"] < 1e-6


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"compact\(inputs\).*\[6\] per example"):
        compact(killed(made(mlp(), 6), _0=[0]), torch.zeros(2, 5))
    with pytest.raises(AnatomyError, match="example inputs"):
        compact(Network.of(mlp()))


def test_given_inputs_are_part_of_the_proof() -> None:
    class Shy(nn.Module):
        """Reads the number of units only where the inputs are large."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.fc1(x))
            return self.fc2(hidden / hidden.shape[-1] if float(x.max()) > 50 else hidden)

    net = killed(made(Shy(), 4), fc1=[2])
    assert compact(net).units_removed == 1
    assert compact(net, torch.full((2, 4), 100.0)).units_removed == 0
