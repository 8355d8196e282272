"""Network: a module as an immutable value."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cases import NETWORKS, NetworkCase
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from purity import state, untouched

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


@CASES
def test_the_outputs_are_the_models_in_eval_mode(case: NetworkCase) -> None:
    model, inputs = case.build(), case.inputs(5, "many")
    net = Network.of(model, case.inputs(3))
    with torch.no_grad():
        expected = model.eval()(inputs)
    assert torch.allclose(net(inputs), expected, atol=1e-5)
    assert not net(inputs).requires_grad


@CASES
def test_a_network_becomes_a_module_and_a_network_again(case: NetworkCase) -> None:
    net = case.network()
    module = net.to_module()
    with torch.no_grad():
        assert torch.allclose(module(case.inputs(4)), net(case.inputs(4)), atol=1e-5)
    assert not any(part.training for part in module.modules())
    assert Network.of(module).sha256 == net.sha256
    assert list(Network.of(module).weights) == list(net.weights)


@CASES
def test_the_hash_sees_every_tensor(case: NetworkCase) -> None:
    net = case.network()
    seen = {net.sha256}
    for name, weight in net.weights.items():
        seen.add(net.with_weights({name: weight + 1}).sha256)
    for name, buffer in net.buffers.items():
        seen.add(net.with_weights({}, {name: buffer + 1}).sha256)
    assert len(seen) == 1 + len(net.weights) + len(net.buffers)


def test_requires_grad_and_ties_survive_the_round_trip() -> None:
    case = NETWORKS["tokens-tied"]
    model = case.build()
    model.fc1.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    module = Network.of(model, case.inputs(3)).to_module()
    assert module.head.weight is module.embed.weight
    assert not module.fc1.weight.requires_grad  # type: ignore[union-attr]
    assert module.fc2.weight.requires_grad  # type: ignore[union-attr]


def test_buffers_that_a_module_writes_even_in_eval_mode_stay() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.fc(x) + self.calls

    net = Network.of(Counting(), torch.zeros(1, 2))
    with untouched(net):
        assert torch.equal(net(torch.zeros(1, 2)), net(torch.zeros(1, 2)))


def test_gradients_flow_to_weights_that_ask_for_them() -> None:
    net = NETWORKS["mlp-relu"].network()
    leaves = {name: w.clone().requires_grad_() for name, w in net.weights.items()}
    net(NETWORKS["mlp-relu"].inputs(2), leaves).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())


def test_derived_networks_share_what_they_did_not_change() -> None:
    net = NETWORKS["mlp-relu"].network()
    other = net.with_weights({"0.bias": torch.zeros(7)})
    assert other.weights["0.weight"] is net.weights["0.weight"]
    assert other.module is net.module
    assert bool((net.weights["0.bias"] != 0).any())


def test_pins_add_up_and_leave_the_original_free() -> None:
    net = NETWORKS["mlp-relu"].network()
    first, second = torch.zeros(7, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)
    first[1] = second[4] = True
    twice = net.pin({"0.bias": first}).pin({"0.bias": second})
    assert (twice.plasticity["0.bias"] == 0).nonzero().flatten().tolist() == [1, 4]
    assert bool((net.plasticity["0.bias"] == 1).all())


def test_sizes_and_sparsity() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert net.parameters == 6 * 7 + 7 + 7 * 5 + 5 + 5 * 3 + 3
    assert net.sparsity == 0.0
    assert net.with_weights({"4.bias": torch.zeros(3)}).sparsity == 3 / net.parameters
    assert net.device == torch.device("cpu")
    assert state(net.to("cpu")) == state(net)


def test_example_inputs_are_a_copy_of_a_few_rows_and_given_once() -> None:
    case = NETWORKS["mlp-relu"]
    inputs = case.inputs(9)
    net = Network.of(case.build(), inputs)
    assert net.inputs is not None
    assert len(net.inputs) == 2
    inputs.zero_()
    assert bool((net.inputs != 0).any())
    assert net.with_inputs(torch.ones(3, 6)) is net
    assert Network.of(case.build()).with_inputs(torch.ones(3, 6)).inputs is not None


def test_unknown_names_and_other_shapes_are_refused() -> None:
    net = NETWORKS["mlp-relu"].network()
    with pytest.raises(InputError, match=r"with_weights.*0\.biass"):
        net.with_weights({"0.biass": torch.zeros(7)})
    with pytest.raises(InputError, match=r"0\.bias.*7.*6"):
        net.with_weights({"0.bias": torch.zeros(6)})
    with pytest.raises(InputError, match="nowhere"):
        net.with_weights({}, {"nowhere": torch.zeros(1)})
    with pytest.raises(InputError, match="nowhere"):
        net.with_plasticity({"nowhere": torch.zeros(1)})
    with pytest.raises(InputError):
        net.with_plasticity({"0.bias": torch.full((7,), -1.0)})
    with pytest.raises(InputError):
        net.pin({"0.bias": torch.ones(6, dtype=torch.bool)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sick_model_is_refused_and_the_sick_tensor_named(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].bias[1] = bad
    with pytest.raises(InputError, match=r"0\.bias.*1 NaN or infinite of 2"):
        Network.of(model)
    with torch.no_grad():
        model[0].bias[1] = 0.0
        model[1].running_var[0] = bad  # type: ignore[index, operator]
    with pytest.raises(InputError, match=r"1\.running_var"):
        Network.of(model)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.ReLU(), None),
        (nn.LazyLinear(3), None),
        ("resnet", None),
        (lambda x: x, None),
        (nn.Linear(2, 1), [[0.0, 1.0]]),
        (nn.Linear(2, 1), torch.tensor(1.0)),
        (nn.Linear(2, 1), torch.zeros(0, 2)),
    ],
    ids=["no parameters", "lazy", "text", "function", "list", "scalar", "no examples"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_is_no_module_or_no_input_is_refused(model: object, inputs: object) -> None:
    with pytest.raises(InputError, match=r"Network\.of"):
        Network.of(model, inputs)  # type: ignore[arg-type]


def test_a_network_can_be_copied_and_shows_what_it_is() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    assert state(copy.deepcopy(net)) == state(net)
    assert repr(net) == f"<Network Sequential: {net.parameters:,} weights, sha256 {net.sha256[:12]}>"


def test_a_network_made_and_used_inside_no_grad_and_inference_mode_works() -> None:
    case = NETWORKS["mlp-relu"]
    with torch.inference_mode():
        net = Network.of(case.build(), case.inputs(3))
        inside = net(case.inputs(4))
    assert torch.equal(net(case.inputs(4)), inside)
    assert torch.rand(1, generator=stream(0, "x")).shape == (1,)
