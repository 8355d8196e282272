"""What a network can be trained against: small values that say how the gradient of an update is formed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy, Unit
from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.repair.regrow import embryonic
from planaria.repair.training import Gradient, Training


def _parts(rows: Tensor, groups: int) -> int:
    """Parts of a batch: as many as wanted, but of two examples at least, which normalisations need."""
    return max(1, min(groups, len(rows) // 2))


def _shares(setting: object, *names: str, below_one: bool = False) -> None:
    """Numbers from 0 to 1."""
    for name in names:
        value = getattr(setting, name)
        good = isinstance(value, (int, float)) and 0 <= value <= 1 and not (below_one and value == 1)
        if not good:
            wanted = "a number from 0 to below 1" if below_one else "a number from 0 to 1"
            raise InputError(f"{type(setting).__name__}.{name}", wanted, repr(value))


def _whole(setting: object, name: str) -> None:
    value = getattr(setting, name)
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise InputError(f"{type(setting).__name__}.{name}", "a whole number of at least 1", repr(value))


@dataclass(frozen=True)
class Plain:
    """Nothing: the control, as much training without hardening.

    Example:
        >>> Plain().evaluations
        1
    """

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def begin(self, training: Training, /) -> Gradient:
        """The loss as it is."""
        return training.loss


@dataclass(frozen=True)
class UnitFaults:
    """Units that fail while the network learns, at a rate that is drawn anew for every group of examples.

    Each batch is split into `groups` parts. A share of the parts stays clean; each of the others draws a rate r,
    uniform between `low` and `high`, and in every layer the fraction r of the living units, drawn without replacement,
    is silent for it. Survivors are not rescaled: the network has to work at every rate as it is.

    Args:
        low: Least rate, from 0 to 1.
        high: Greatest rate, from `low` to 1.
        groups: Parts of a batch with faults of their own; each costs a pass over its examples.
        clean: Share of the parts in which nothing fails.

    Raises:
        InputError: If a number is off its range.

    Source: random disabling of hidden units, Sequin and Clay, 1990 (Fault tolerance in artificial neural networks),
        with random rates, and groups of examples in place of whole batches.

    Not guaranteed: that nothing is lost intact; as much training without faults usually ends a little higher.

    Example:
        >>> UnitFaults(high=0.8)
        UnitFaults(low=0.0, high=0.8, groups=4, clean=0.25)
    """

    low: float = 0.0
    high: float = 0.95
    groups: int = 4
    clean: float = 0.25

    def __post_init__(self) -> None:
        _shares(self, "low", "high", "clean")
        _whole(self, "groups")
        if self.low > self.high:
            raise InputError("UnitFaults.high", f"a rate of at least low = {self.low}", self.high)

    @property
    def evaluations(self) -> int:
        """One: the parts add up to one batch."""
        return 1

    def begin(self, training: Training, /) -> Gradient:
        """The loss with units failing."""

        def gradient(rows: Tensor) -> Tensor:
            parts = _parts(rows, self.groups)
            rates = self.low + (self.high - self.low) * torch.rand(parts, generator=training.rng)
            rates[: math.floor(self.clean * parts + 0.5)] = 0.0
            return training.silenced(rows, [organ.fraction(rates, training.rng) for organ in training.organs])

        return gradient


@dataclass(frozen=True)
class Dropout:
    """Dropout of units: each fails with probability p, and survivors are read 1 / (1 - p) times as loudly.

    Units are drawn per group of examples, not per example: all examples of a part of the batch see the same units. The
    scale goes to the outgoing weights; units that can only be silenced from the inside are not rescaled.

    Args:
        p: Probability, from 0 to below 1.
        groups: Parts of a batch with draws of their own.

    Raises:
        InputError: If a number is off its range.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, 2014 (Dropout).

    Example:
        >>> Dropout(0.2)
        Dropout(p=0.2, groups=4)
    """

    p: float = 0.5
    groups: int = 4

    def __post_init__(self) -> None:
        _shares(self, "p", below_one=True)
        _whole(self, "groups")

    @property
    def evaluations(self) -> int:
        """One: the parts add up to one batch."""
        return 1

    def begin(self, training: Training, /) -> Gradient:
        """The loss with dropout."""

        def gradient(rows: Tensor) -> Tensor:
            parts = _parts(rows, self.groups)
            factors = []
            for organ in training.organs:
                kept = (torch.rand(parts, organ.group.count, generator=training.rng) >= self.p).float()
                factors.append(kept / (1.0 - self.p) if organ.read else kept)
            return training.silenced(rows, factors)

        return gradient


@dataclass(frozen=True)
class TargetedDropout:
    """Dropout of the units that matter least: those of smallest weight norm fail with probability p, the rest never.

    At every update the living units of each layer are ordered by the Euclidean norm of their outgoing entries (of the
    incoming ones where there are none). Survivors are not rescaled. Units are drawn per group of examples.

    Args:
        share: Share of each layer's units that can fail.
        p: Probability with which they do.
        groups: Parts of a batch with draws of their own.

    Raises:
        InputError: If a number is off its range.

    Source: Gomez, Zhang, Kamalakara, Madaan, Swersky, Gal and Hinton, 2019 (Learning sparse networks using targeted
        dropout), with outgoing in place of incoming norms.

    Example:
        >>> TargetedDropout()
        TargetedDropout(share=0.5, p=0.5, groups=4)
    """

    share: float = 0.5
    p: float = 0.5
    groups: int = 4

    def __post_init__(self) -> None:
        _shares(self, "share", "p")
        _whole(self, "groups")

    @property
    def evaluations(self) -> int:
        """One: the parts add up to one batch."""
        return 1

    def begin(self, training: Training, /) -> Gradient:
        """The loss with targeted dropout."""

        def gradient(rows: Tensor) -> Tensor:
            parts = _parts(rows, self.groups)
            factors = []
            for organ in training.organs:
                square = {name: training.weights[name].detach().square() for name in organ.sizing}
                sizes = organ.sums(square, organ.sizing).cpu()
                order = organ.living[sizes[organ.living].argsort(stable=True)]
                least = order[: math.floor(self.share * len(order) + 0.5)]
                kept = torch.ones(parts, organ.group.count)
                kept[:, least] = (torch.rand(parts, len(least), generator=training.rng) >= self.p).float()
                factors.append(kept)
            return training.silenced(rows, factors)

        return gradient


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation: the gradient is taken at the worst point near by.

    With g the gradient of the loss over the plastic entries, the update's gradient is that of the loss at
    w + rho g / |g|. Normalisation statistics learn from the first pass only.

    Args:
        rho: Distance in weight space, at least 0.

    Raises:
        InputError: If rho is negative or not finite.

    Source: Foret, Kleiner, Mobahi and Neyshabur, 2021 (Sharpness-aware minimization), equation 3.

    Example:
        >>> SAM().evaluations
        2
    """

    rho: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.rho, (int, float)) and 0 <= self.rho < math.inf):
            raise InputError("SAM.rho", "a finite number of at least 0", repr(self.rho))

    @property
    def evaluations(self) -> int:
        """Two."""
        return 2

    def begin(self, training: Training, /) -> Gradient:
        """The loss at the end of the climb."""
        moving = {name: weight for name, weight in training.weights.items() if weight.requires_grad}
        plastic = {name: training.net.plasticity[name] != 0 for name in moving}

        def gradient(rows: Tensor) -> Tensor:
            slopes = torch.autograd.grad(training.loss(rows), list(moving.values()), allow_unused=True)
            uphill = {
                name: slope * plastic[name] for name, slope in zip(moving, slopes, strict=True) if slope is not None
            }
            length = torch.stack([slope.square().sum() for slope in uphill.values()]).sum().sqrt()
            scale = self.rho / length.clamp_min(1e-12)
            climbed = {name: moving[name] + scale * slope for name, slope in uphill.items()}
            return training.loss(rows, climbed, statistics=False)

        return gradient


@dataclass(frozen=True)
class B3:
    """A penalty on the first-order variance of the outputs when units crash independently with probability p.

    loss + weight * p (1 - p) * mean over examples of sum over units i and outputs k of (z_i df_k/dz_i)^2, where z_i is
    the unit's activation. Since the next layer is linear in it, z_i df_k/dz_i is the sum over the unit's outgoing
    entries of w df_k/dw, and the sum of squares is the expectation over random signs s of the square of the sum over
    outgoing entries of w d(sum over examples and outputs of s f)/dw: one pass more and a second derivative, for any
    network. The penalty is taken in eval mode, as the network will be used.

    Args:
        weight: Of the penalty, at least 0.
        p: Probability of a crash, from 0 to 1.

    Raises:
        InputError: If a number is off its range.

    Source: estimate b3 of Volodin, El-Mhamdi, Guerraoui and Kucharavy, 2019 (The probabilistic fault tolerance of
        neural networks in the continuous limit), with p (1 - p) in place of p.

    Not guaranteed: that it bounds anything: it is of first order, and poor where many units die. Units that cannot be
    silenced by their outgoing entries are left out.

    Example:
        >>> B3().evaluations
        3
    """

    weight: float = 0.1
    p: float = 0.1

    def __post_init__(self) -> None:
        _shares(self, "p")
        if not (isinstance(self.weight, (int, float)) and 0 <= self.weight < math.inf):
            raise InputError("B3.weight", "a finite number of at least 0", repr(self.weight))

    @property
    def evaluations(self) -> int:
        """Three: the loss, the derivatives of the outputs, and the derivatives of those."""
        return 3

    def begin(self, training: Training, /) -> Gradient:
        """The loss with the penalty."""

        def gradient(rows: Tensor) -> Tensor:
            return training.loss(rows) + self.weight * self.penalty(training, rows)

        return gradient

    def penalty(self, training: Training, rows: Tensor) -> Tensor:
        """One estimate of the variance, mean over the rows; its expectation over the signs is the formula."""
        organs = [organ for organ in training.organs if organ.read]
        leaves = {
            name: weight if (weight := training.weights[name]).requires_grad else weight.detach().requires_grad_()
            for organ in organs
            for name in organ.silencing
        }
        training.module.eval()
        try:
            with plain_kernels(attention=True, recurrence=True):  # fused kernels have no second derivative
                outputs = training.outputs(rows, leaves)
        finally:
            training.module.train()
        if not leaves:
            return outputs.new_zeros(())
        signs = torch.randint(2, outputs.shape, generator=training.rng).to(outputs) * 2 - 1
        slopes = torch.autograd.grad(
            (signs * outputs).sum(), list(leaves.values()), create_graph=True, materialize_grads=True
        )
        shares = {name: leaves[name] * slope for name, slope in zip(leaves, slopes, strict=True)}
        squares = [
            organ.sums({name: shares[name] for name in organ.silencing}, organ.silencing).square().sum()
            for organ in organs
        ]
        return self.p * (1.0 - self.p) / len(rows) * torch.stack(squares).sum()


@dataclass(frozen=True)
class DamageRepair:
    """Constant damage and repair: again and again a fresh share of the units dies and the rest is trained on.

    Every `updates` updates the fraction `dose` of the living units of each layer, drawn at random, loses all its
    weights and stays dead for that long; then these units return as embryonic ones (see `embryonic`) and others die.
    Units with pinned entries are spared. With a horizon nothing dies any more after the share `until` of it, so that
    the last wounds can heal while the rate is still high enough.

    Args:
        dose: Fraction of the units of every layer that dies, from 0 to 1.
        updates: Updates between two hits.
        until: Share of the horizon after which nothing is hit.

    Raises:
        InputError: If a number is off its range.

    Source: strategy 3 of the rescue paper as a way of training, in the form in which units return (turnover).

    Example:
        >>> DamageRepair(dose=0.2)
        DamageRepair(dose=0.2, updates=100, until=0.5)
    """

    dose: float = 0.1
    updates: int = 100
    until: float = 0.5

    def __post_init__(self) -> None:
        _shares(self, "dose", "until")
        _whole(self, "updates")

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def begin(self, training: Training, /) -> Gradient:
        """The loss; between two updates, death and return."""
        anatomy = Anatomy.of(training.net)
        able = [(organ, organ.unpinned(training.net)) for organ in training.organs]
        last = math.inf if training.horizon is None else self.until * training.horizon
        done = 0
        away: list[Unit] = []

        def gradient(rows: Tensor) -> Tensor:
            nonlocal done, away
            event, over = done % self.updates == 0, done >= last
            done += 1
            if away and (event or over):
                now = training.net.with_weights({n: weight.detach() for n, weight in training.weights.items()})
                training.put(embryonic(now, away, training.rng).weights)
                away, training.held = [], {}
            if event and not over and self.dose > 0:
                away = [
                    Unit(organ.group.layer, units[place])
                    for organ, units in able
                    for place in torch.randperm(len(units), generator=training.rng).tolist()[
                        : math.floor(self.dose * len(units) + 0.5)
                    ]
                ]
                entries = anatomy.entries(away).all
                training.held = {name: hit.to(training.net.device) for name, hit in entries.items()}
                training.put({n: training.weights[n].detach().masked_fill(h, 0) for n, h in training.held.items()})
            return training.loss(rows)

        return gradient
