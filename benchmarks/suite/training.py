"""Repair epochs: a damaged network retrained by the engine, against loops that multiply by zero what must stay dead.

All ways take the same batches in the same order and end at the same weights, which is asserted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from suite.harness import SAME_ROUTE, Row, interleave, one_forward, peak_mib, repetitions, row, same_route
from suite.networks import Case, mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.repair.retrain import SGD, Adam, Optimiser, Retrain

EXAMPLES, BATCH = 60_000, 128
DOSES = {0.5: "50 %", 0.9: "90 %"}


def epochs_in_memory(quick: bool) -> list[Row]:
    """B10: against a loop over tensors in memory, SGD with momentum."""
    loop = partial(masked, make=partial(torch.optim.SGD, lr=0.01, momentum=0.9), batches=in_memory)
    return epochs("B10", "tensors in memory, SGD", SGD(0.01), loop, {0.5: 4.3, 0.9: 13.0}, quick)


def epochs_by_loader(quick: bool) -> list[Row]:
    """B11: against the usual DataLoader and Adam."""
    loop = partial(masked, make=partial(torch.optim.Adam, lr=1e-4), batches=by_loader)
    return epochs("B11", "DataLoader, Adam", Adam(1e-4), loop, {0.5: 12.0, 0.9: 40.0}, quick)


BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {"B10": epochs_in_memory, "B11": epochs_by_loader}


def epochs(
    id: str,
    by: str,
    optimiser: Optimiser,
    loop: Callable[[Network, Data, Tensor], Network],
    goals: dict[float, float],
    quick: bool,
) -> list[Row]:
    """One row per dose of damage.

    Args:
        id: Number in the suite.
        by: The other way, in words.
        optimiser: Ours.
        loop: The other way: network, data and row numbers [updates, batch] -> network.
        goals: Dose -> how many times as fast ours should be.
        quick: A twelfth of an epoch of ours, and of the other way a third of that, scaled.
    """
    case = mlp(quick)
    data = enlarged(case.train)
    task = Task.of("images", data, case.test, validation=case.test)
    whole = EXAMPLES // BATCH
    updates, part = (whole // 12, whole // 36) if quick else (whole, whole)
    # The stream of a repair draws first the order of the first pass over the data.
    order = torch.randperm(EXAMPLES, generator=stream(0, "repair")).narrow(0, 0, part * BATCH).view(part, BATCH)
    forward_s = one_forward(case.net, data.inputs[: updates * BATCH], case.batch)
    rows = []
    for dose, share in DOSES.items():
        hurt = Damage(Silence(), RandomUnits()).at(dose)(case.net, stream(0, "damage"))
        flow = Retrain(task, optimiser, BATCH)

        def ours(number: int = updates, hurt: Network = hurt, flow: Retrain = flow) -> Network:
            return settle(flow, steps(number))(hurt, stream(0, "repair"))

        def naive(hurt: Network = hurt) -> Network:
            return loop(hurt, data, order)

        ways = {"naive": naive, SAME_ROUTE: same_route(naive), "ours": ours}
        rows.append(
            row(
                id,
                f"{updates} updates at {share} damage, against {by}",
                interleave(ways, repetitions(quick)),
                naive_scale=updates / part,
                forward_s=forward_s,
                difference=assert_same_end(hurt, naive(), ours(part), case),
                peak=peak_mib(ours),
                at_least={"ratio_naive": goals[dose]},
            )
        )
    return rows


def assert_same_end(hurt: Network, naive: Network, ours: Network, case: Case) -> float:
    """Fail unless two repairs ended at the same weights up to rounding, and dead entries never moved.

    Returns:
        Difference of their test scores.
    """
    for name, start in hurt.weights.items():
        pinned = hurt.plasticity[name] == 0
        assert torch.equal(ours.weights[name][pinned], start[pinned]), f"{name}: a dead entry has moved"
        moved = float((naive.weights[name] - start).norm())
        apart = float((naive.weights[name] - ours.weights[name]).norm())
        assert apart <= 1e-2 * moved, f"{name}: {apart:.3g} apart after moving by {moved:.3g}"
    difference = abs(case.task.score(naive) - case.task.score(ours))
    assert difference <= 0.001, f"scores are {difference} apart"
    return difference


def enlarged(data: Data) -> Data:
    """As many examples as MNIST has, by repetition: what is timed does not depend on what is in them."""
    rows = torch.arange(EXAMPLES) % len(data)
    return Data(data.inputs[rows], data.targets[rows])


# ---------------------------------------------------------------------------------------------- the usual loops


def in_memory(data: Data, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches by indexing."""
    for rows in order:
        yield data.inputs[rows], data.targets[rows]


def by_loader(data: Data, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches by torch's loader, in the given order."""
    yield from DataLoader(TensorDataset(data.inputs, data.targets), batch_sampler=order.tolist())


def masked(
    hurt: Network,
    data: Data,
    order: Tensor,
    *,
    make: Callable[..., torch.optim.Optimizer],
    batches: Callable[[Data, Tensor], Iterator[tuple[Tensor, Tensor]]],
) -> Network:
    """The usual loop: gradients and weights are multiplied by what is alive at every update."""
    module = hurt.to_module().train().requires_grad_()
    living = {name: (hurt.plasticity[name] != 0).float() for name, _ in module.named_parameters()}
    optimiser = make(module.parameters())
    for inputs, targets in batches(data, order):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(living[name])
        optimiser.step()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.mul_(living[name])
    return hurt.with_weights({name: parameter.detach() for name, parameter in module.named_parameters()})
