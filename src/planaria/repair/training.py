"""A training under way, as whoever forms its gradients sees it: losses with units silenced, or other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from planaria.core.anatomy import Anatomy, Group, Unit
from planaria.core.network import Network
from planaria.core.trees import Entries, Weights
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.repair.descent import Gradient, outputs_in_training


@dataclass(frozen=True, eq=False)
class Organ:
    """The units of one layer, ready to be silenced in a copy of the weights.

    Attributes:
        group: The layer in the anatomy.
        living: Indices of the units that are alive.
        silencing: Weight name -> owner of each entry, flat, `count` = none; zeroing these silences a unit exactly.
        read: Whether these are the outgoing entries.
        sizing: The same for the entries that a unit's size is read from.
    """

    group: Group
    living: Tensor
    silencing: Weights
    read: bool
    sizing: Weights

    @staticmethod
    def of(group: Group, dead: Tensor, device: torch.device) -> Organ:
        """Units of one layer, of which some may be dead already."""

        def flat(*roles: str) -> Weights:
            found = {name: owner for role in roles for name, owner in group.owners[role].items()}
            return {
                name: torch.where(owner < 0, group.count, owner).flatten().to(device) for name, owner in found.items()
            }

        read = group.exact_by != "incoming"
        # One side is enough, and normalisations before the units go on seeing what they see when nothing fails.
        silencing = flat("outgoing") if read else flat("incoming", "scale", "shift")
        sizing = flat("outgoing") or flat("incoming") or silencing  # a tap has only its gain
        return Organ(group, (~dead).nonzero().flatten(), silencing, read, sizing)

    def sums(self, values: Mapping[str, Tensor], owners: Weights) -> Tensor:
        """Sum over each unit's entries [units].

        Args:
            values: Weight name -> one value per entry.
            owners: `silencing` or `sizing`, with the same names.
        """
        parts = [
            value.new_zeros(self.group.count + 1).index_add(0, owners[name], value.flatten())
            for name, value in values.items()
        ]
        return torch.stack(parts).sum(0)[:-1]

    def fraction(self, rates: Tensor, rng: Generator) -> Tensor:
        """Factors [rates, units] that silence a fraction of the living units, drawn without replacement."""
        living = len(self.living)
        places = torch.rand(len(rates), living, generator=rng).argsort(1).argsort(1)
        factors = torch.ones(len(rates), self.group.count)
        factors[:, self.living] = (places >= (rates * living + 0.5).floor()[:, None]).to(factors)
        return factors

    def unpinned(self, net: Network) -> list[int]:
        """Living units with no pinned entry, but for those that they share with dead ones."""
        anatomy = Anatomy.of(net)
        dead = (Unit(layer, int(i)) for layer, gone in anatomy.dead(net).items() for i in gone.nonzero())
        shared = anatomy.entries(dead).all
        able = torch.zeros(self.group.count + 1, dtype=torch.bool)
        able[self.living] = True
        for owners in self.group.owners.values():
            for name, owner in owners.items():
                pinned = (net.plasticity[name] == 0).cpu()
                able[owner[pinned & ~shared[name] if name in shared else pinned]] = False
        return able[:-1].nonzero().flatten().tolist()


@dataclass(eq=False)
class Training:
    """What an `Against` sees of the training it takes part in.

    Attributes:
        net: The network at the start.
        task: What is trained on.
        data: Its training split, where the network is.
        module: The module, in train mode; its parameters are the weights.
        rng: For the faults alone: batches do not depend on it.
        horizon: Updates until the rate is 0, if it falls.
        held: Entries that must not move at present, beside the pinned ones.
    """

    net: Network
    task: Task
    data: Data
    module: nn.Module
    rng: Generator
    horizon: int | None
    held: Entries = field(default_factory=dict)
    _held: tuple[Entries | None, Weights] = (None, {})

    @cached_property
    def weights(self) -> Weights:
        """The weights as they are; those that can move require gradients."""
        return dict(self.module.named_parameters())

    @property
    def plasticity(self) -> Weights:
        """Plasticity of the network, 0 where entries are held; the same object while the same ones are."""
        known, plasticity = self._held
        if known is not self.held:
            plasticity = dict(self.net.plasticity)
            for name, held in self.held.items():
                plasticity[name] = plasticity[name].masked_fill(held, 0.0)
            self._held = self.held, plasticity
        return plasticity

    @cached_property
    def organs(self) -> tuple[Organ, ...]:
        """Units that can fail: all kinds but branches (those too where there is nothing else)."""
        anatomy = Anatomy.of(self.net)
        dead = anatomy.dead(self.net)
        return tuple(Organ.of(group, dead[group.layer], self.net.device) for group in anatomy.select())

    def loss(self, rows: Tensor, weights: Weights | None = None, *, statistics: bool = True) -> Tensor:
        """Mean loss of some rows in train mode.

        Args:
            rows: Row numbers of the training split.
            weights: Used instead of the weights of these names.
            statistics: Whether normalisation statistics learn from this pass.
        """
        return self.task.loss(
            self.outputs(rows, weights, statistics=statistics), self.data.targets.index_select(0, rows)
        )

    def outputs(self, rows: Tensor, weights: Weights | None = None, *, statistics: bool = True) -> Tensor:
        """Outputs for some rows; see `loss`."""
        changed: Weights = {} if weights is None else dict(weights)
        if not statistics:
            changed |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}

        def forward(inputs: Tensor) -> Tensor:
            def called(*args: Tensor, **kwargs: Tensor) -> Any:
                return functional_call(self.module, changed, args, kwargs) if changed else self.module(*args, **kwargs)

            outputs: Tensor = self.net.port(called, inputs)
            return outputs

        return outputs_in_training(forward, self.data.inputs.index_select(0, rows), "Harden.batch")

    def silenced(self, rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Mean loss of a batch whose parts see different units fail.

        Args:
            rows: The batch.
            factors: Per organ, what its units are multiplied by [parts, units]: 0 = silent.
        """
        parts = rows.tensor_split(len(factors[0]))
        hit = [any(bool((factor[part] != 1).any()) for factor in factors) for part in range(len(parts))]
        together = [part for part, struck in zip(parts, hit, strict=True) if not struck]
        # Parts in which nothing fails are one part: cheaper, and without faults the same bits as plain training.
        losses = [(len(r), self.loss(r)) for r in ([torch.cat(together)] if together else [])]
        for at, (part, struck) in enumerate(zip(parts, hit, strict=True)):
            if struck:
                losses.append((len(part), self.loss(part, self.multiplied([factor[at] for factor in factors]))))
        if len(losses) == 1:
            return losses[0][1]
        return torch.stack([loss * (count / len(rows)) for count, loss in losses]).sum()

    def put(self, weights: Weights) -> None:
        """Set those of the weights that can move."""
        with torch.no_grad():
            for name, value in weights.items():
                if self.weights[name].requires_grad:
                    self.weights[name].copy_(value)

    def multiplied(self, factors: Sequence[Tensor]) -> Weights:
        """Weights through which units are multiplied, with their gradients.

        Args:
            factors: Per organ, what its units are multiplied by [units].
        """
        changed: Weights = {}
        for organ, factor in zip(self.organs, factors, strict=True):
            padded = torch.cat([factor, torch.ones_like(factor[:1])])
            for name, owner in organ.silencing.items():
                weight = changed.get(name, self.weights[name])
                changed[name] = weight * padded.to(weight).index_select(0, owner).view(weight.shape)
        return changed


class Against(Protocol):
    """What `Harden` needs: the price of an update, and how its gradient is formed."""

    @property
    def evaluations(self) -> int:
        """Gradient evaluations per update."""
        ...

    def begin(self, training: Training, /) -> Gradient:
        """Called once per training; what it returns is called once per update, in order."""
        ...
