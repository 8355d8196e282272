"""Direct effects: what each unit's silence does to the outputs before anything behind it responds.

Total effect of a unit: the change of the mean margin when it is silenced and all that lies behind responds. The margin
of an example is the output of its label less the best other output; which one that is is decided by the intact network
and then held, so that nothing but the layers responds. For tasks without classes it is minus the loss of the example.

Direct effect: the same with every later operation held at its intact operating point, that is, replaced by its tangent
there. Slopes of activations, choices of max-pooling, statistics of batch normalisation stay what they are; layer
normalisation and attention give way to first order. With a gain g on all that a unit emits, g = 1 intact and 0 silent,

    direct = -d margin / d g at g = 1 = -sum over positions and gates of h * d margin / d h,

for all units at once from one pass forward and back.

Compensation = total - direct: positive where later layers make up for the loss, negative where they make it worse,
zero where everything behind the unit is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from planaria.core.devices import without_tf32
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.measure.data import Data
from planaria.measure.labels import IGNORED, class_scores, over_counted
from planaria.measure.scores import Score
from planaria.measure.task import Loss, Task
from planaria.sweep.program import Program
from planaria.sweep.replay import chunk_size, chunks
from planaria.sweep.tally import Judge


def margins(net: Network, task: Task, data: Data) -> tuple[Score, Data]:
    """The margin as a score, and the data with the targets that it reads.

    Args:
        net: The intact network, which decides what the best other output of an example is.
        task: What it is for.
        data: Inputs and the task's targets.

    Returns:
        Score named "margin", whose targets hold label and rival (label * outputs + rival), or "minus loss" with the
        targets as they are, for tasks without classes and networks with fewer than two outputs.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.datasets import task
        >>> digits = task("digits")
        >>> net = Network.of(nn.Linear(64, 10))
        >>> score, data = margins(net, digits, digits.test.take(5))
        >>> score.name, score.per_example(net(data.inputs), data.targets).shape
        ('margin', torch.Size([5]))
    """
    data = data.to(net.device)
    outputs = task.outputs(net, data)
    labels = data.targets
    scores = _of_classes(outputs, labels) if task.classes is not None else None
    if scores is None or scores.shape[1] < 2:
        return _score("minus loss", _minus_each(task.loss)), data
    count, counted = scores.shape[1], labels != IGNORED
    labels = labels.where(counted, 0)
    others = scores.scatter(1, labels.unsqueeze(1), -torch.inf)

    def margin(given: Tensor, held: Tensor) -> Tensor:
        given, places = class_scores(given, held), held.clamp(min=0).unsqueeze(1)
        own = given.gather(1, places // count) - given.gather(1, places % count)
        return over_counted(own.squeeze(1), held)

    return _score("margin", margin), replace(data, targets=(labels * count + others.argmax(1)).where(counted, IGNORED))


def _of_classes(outputs: Tensor, labels: Tensor) -> Tensor | None:
    """Outputs with the classes in dimension 1; None where they are no class scores."""
    try:
        return None if labels.is_floating_point() else class_scores(outputs, labels)
    except InputError:
        return None


def _score(name: str, per_example: Callable[[Tensor, Tensor], Tensor]) -> Score:
    return Score(name, lambda outputs, targets: float(per_example(outputs, targets).mean()), per_example=per_example)


def _minus_each(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Minus the loss of each example, from a loss that is a mean over a batch."""

    def one(output: Tensor, target: Tensor) -> Tensor:
        return -loss(output.unsqueeze(0), target.unsqueeze(0))

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        targets = targets.to(outputs.device)
        if not len(outputs):
            return outputs.new_empty(0)
        try:
            found: Tensor = torch.func.vmap(one)(outputs, targets)
        except RuntimeError:  # a loss that looks at its data
            found = torch.stack([one(output, target) for output, target in zip(outputs, targets, strict=True)])
        return found

    return each


@without_tf32()
def direct_effects(
    program: Program, layers: Sequence[str], inputs: Tensor, targets: Tensor, judge: Judge
) -> dict[str, Tensor]:
    """Direct effect of each unit on the mean score, all units from one pass forward and back.

    Args:
        program: Of the network.
        layers: Layers that have gates.
        inputs: [examples, ...].
        targets: What the score reads, [examples, ...].
        judge: A score that is smooth in the outputs, for example that of `margins`.

    Returns:
        Layer -> direct effect of its units, [units], double; negative where silence lowers the score.

    Raises:
        InputError: A layer without gates, or a pass that cannot be differentiated.

    Example:
        >>> from torch import nn
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)), torch.ones(1, 2))
        >>> ones = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2), "2.weight": torch.tensor([[3.0, -1.0]])}
        >>> total = Judge(Score("sum", lambda y, t: float(y.sum()), per_example=lambda y, t: y[:, 0]))
        >>> x = torch.ones(4, 2)
        >>> direct_effects(Program.of(net.with_weights(ones)), ["0"], x, torch.zeros(4), total)["0"]
        tensor([-6.,  2.], dtype=torch.float64)

    Source: first-order (Taylor) effects of units as in Molchanov et al. 2017; direct and total effects of a unit as in
    Vig et al. 2020, "Investigating gender bias in language models using causal mediation analysis", and McGrath et al.
    2023, "The hydra effect", here with what lies behind linearised instead of patched.

    Not guaranteed: anything about scores with steps, such as accuracy, whose slope is 0 or missing.
    """
    for layer in layers:
        if layer not in program.gates:
            raise InputError(
                f"direct_effects(layer {layer!r})", "activations whose units lie along one axis", "others", "Leave it."
            )
    places = sorted({gate.at for layer in layers for gate in program.gates[layer]})
    counts = {layer: 1 + max(int(gate.owner.max()) for gate in program.gates[layer]) for layer in layers}
    found = {layer: torch.zeros(count, dtype=torch.float64) for layer, count in counts.items()}
    for x, t in chunks(inputs, targets, chunk_size(program, inputs.device)):

        def numbers(outputs: Tensor, t: Tensor = t) -> Tensor:
            return judge.values(outputs, t)

        try:
            _, pairs = program.slopes(x, places, numbers)
        except (RuntimeError, NotImplementedError) as problem:
            if "memory" in str(problem):
                raise
            said = (str(problem).splitlines() or ["no message"])[0][:120]
            raise InputError(
                "direct_effects", "a pass that can be differentiated", said, "Use total effects."
            ) from None
        products = {at: value * slope for at, (value, slope) in zip(places, pairs, strict=True)}
        for layer, sums in found.items():
            for gate in program.gates[layer]:
                sums -= gate.sums(products[gate.at].double(), len(sums)).sum(0).cpu()
    return {layer: sums / max(1, len(inputs)) + 0.0 for layer, sums in found.items()}
