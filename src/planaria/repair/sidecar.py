"""Sidecar: what is kept beside a checkpoint so that the network can be repaired later without data.

For every reader of units: the second moments E[h h^T] of what it reads, h = (features, 1); its weights, for what the
damage destroys; and short hashes of all rows of all weights, by which a damaged network is recognised.

On file the moments are a factor: the leading eigenvectors v_k sqrt(l_k) in eight bits, each with its own scale, and
the remaining diagonal. How many are kept follows from a limit on the size of the file, relative to the model's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds, run, strays
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs, Layout
from planaria.core.streams import stream
from planaria.core.trees import Entries, digest
from planaria.measure.weights import pack_weights, read_tensors
from planaria.repair.forms import Patches
from planaria.repair.packing import Factor, eight_bits, one_line, prints_of, ranks_for
from planaria.repair.reader import Reader
from planaria.repair.readers import STRAYS, readers, rows_of, spread, watch
from planaria.repair.relevance import needed, program_for, relevance

SHARE, CONVOLUTIONAL_SHARE = 0.15, 0.5
"""Usual largest size of the file, as a share of the model's, without and with convolutions."""
SCHEMA = "planaria.sidecar.v1"
_WEIGHTS_SHARE = 0.6
"""Largest part of the file that the readers' weights may take; beyond it they are left out."""
_HEADER, _FRAME = 2560, 1800
"""Bytes set aside for names, shapes and hashes at least; and for all of these but the record, which grows."""


@dataclass(frozen=True, eq=False, repr=False)
class Sidecar:
    """Second moments of an intact network's activations, from which it can be repaired later without data.

    Attributes:
        moments: Reader's weight name -> E[h h^T] [groups, features + 1, features + 1] with h = (features, 1), double
            precision.
        weights: Intact weights and biases of the readers, for what is lost in the damaged network; without the
            weights where they did not fit into the file.
        steps: Reader's weight name -> half a rounding step of its stored weights [groups, features, outputs]; empty
            where they are exact.
        examples: Inputs that the moments were taken over.
        refused: Reader's weight name -> why it has no moments.
        sha256: Hash of the intact network.
        prints: Weight name -> hash of each of its rows (axis 0), 16 bits.
        statistics: Hash of the buffers of real numbers, which no lesion touches; empty if unknown.
        about: Facts for who builds the network from the file: input shape and type, number of outputs.
        factors: Reader's weight name -> the form on file that the moments were taken back from; empty while exact.
        cost: What making it has cost.
    """

    moments: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    examples: int
    refused: Mapping[str, str]
    sha256: str = ""
    prints: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, Factor] = field(default_factory=dict)
    cost: Cost = field(default=Cost())

    @staticmethod
    def of(net: Network, inputs: Inputs, importance: Tensor | None = None, *, batch: int = 256) -> Sidecar:
        """Take the moments of an intact network.

        Args:
            net: The intact network.
            inputs: Unlabelled inputs [examples, ...], or as the network takes them; a thousand are usually enough.
            importance: Weight of each input in the moments [examples], at least 0; by default all the same. `doubt`
                gives good ones for classifiers. Where an input has several rows, tokens or positions, each counts as
                much as the outputs depend on it, see `planaria.repair.relevance`.
            batch: Inputs per forward pass.

        Raises:
            InputError: If there are no inputs, the network cannot run on them, or an activation is not finite.

        Example:
            >>> from torch import nn
            >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
            >>> Sidecar.of(net, torch.ones(8, 2)).moments["2.weight"].shape
            torch.Size([1, 4, 4])
        """
        if len(inputs) == 0:
            raise InputError("Sidecar.of(inputs)", "at least one input", "none")
        start = clock(net.device)
        net = net if net.inputs is not None else net.with_inputs(inputs)
        inputs = net.port.rows(inputs).to(net.device)
        found, refused = readers(net)
        heard = {name for group in Anatomy.of(net).groups for name in group.owners["outgoing"]}
        found = {name: reader for name, reader in found.items() if name in heard}
        each = checked_importance("Sidecar.of(importance)", importance, inputs)
        _try(net, inputs)
        if any(strays(net, part) for part in inputs.split(batch)):
            refused, found = {**refused, **dict.fromkeys(found, STRAYS)}, {}
        order, looked = ({}, Cost()) if each is None and not needed(found) else rows_of(net, found, inputs)
        program = program_for(net, found, inputs)
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        outputs = None
        for at in range(0, len(inputs), batch):
            part = inputs[at : at + batch]
            again, _ = readers(net, len(part))
            here = {name: again[name] for name in found if name in again}
            weights, spent = relevance(program, found, part, order)
            looked = looked + spent
            mine = None if each is None else each[at : at + len(part)]
            calls: dict[str, int] = {}

            def add(
                reader: Reader,
                x: Tensor,
                mine: Tensor | None = mine,
                weights: Mapping[tuple[str, int], Tensor] = weights,
                calls: dict[str, int] = calls,
            ) -> None:
                features = reader.features(x)
                call = calls[reader.weight] = calls.get(reader.weight, -1) + 1
                shares = spread(mine, features.shape[1], order.get(reader.weight))
                moment = moment_of(features, product_of(shares, weights.get((reader.weight, call))))
                sums[reader.weight] = sums[reader.weight] + moment if reader.weight in sums else moment
                rows[reader.weight] = rows.get(reader.weight, 0) + features.shape[1]

            outputs = run(net, part, watch(here, add))
        for name, total in sums.items():
            if not bool(total.isfinite().all()):
                raise InputError(f"Sidecar.of: activations read by {name!r}", "finite numbers", "NaN or infinity")
        # The last entry counts the rows, weighted.
        moments = {name: total / total[:, -1:, -1:] for name, total in sums.items()}
        work = sum(rows[name] * m.shape[0] * m.shape[1] ** 2 for name, m in moments.items())
        cost = Cost(
            examples=len(inputs),
            forward_passes=-(-len(inputs) // batch),
            multiply_adds=len(inputs) * forward_multiply_adds(net, inputs) + work,
            seconds=clock(net.device) - start,
        )
        names = [*moments, *(r.bias for n, r in found.items() if n in moments and r.bias is not None)]
        return Sidecar(
            moments=moments,
            weights={name: net.weights[name] for name in names},
            examples=len(inputs),
            refused=refused,
            sha256=net.sha256,
            prints={name: prints_of(weight) for name, weight in net.weights.items()},
            statistics=_statistics(net),
            about={
                "shape": list(inputs.shape[1:]),
                "type": str(inputs.dtype).removeprefix("torch."),
                "layout": _layout(net.port.layout, inputs[:2]),
                "outputs": outputs.shape[-1] if isinstance(outputs, Tensor) else None,
                "bytes": sum(t.numel() * t.element_size() for t in [*net.weights.values(), *_saved(net).values()]),
                "convolutional": any(isinstance(found[name].form, Patches) for name in moments),
            },
            cost=cost + looked,
        )

    def packed(self, share: float | None = None) -> Sidecar:
        """The sidecar as its file will hold it: fewer eigenvectors, eight bits.

        Args:
            share: Largest size of the file over the size of the model; by default 0.15, with convolutions 0.5.

        Raises:
            InputError: If the share is not above 0, or too small for anything.

        Not guaranteed: the same repair; what it costs is to be measured (`planaria sidecar` does).
        """
        if self.factors:
            return self
        if share is None:
            share = CONVOLUTIONAL_SHARE if self.about.get("convolutional") else SHARE
        if not share > 0:
            raise InputError("Sidecar.packed(share)", "a number above 0", share)
        room = int(share * int(self.about["bytes"])) - max(_HEADER, _FRAME + len(json.dumps(self._record())))
        room -= 2 * sum(p.numel() for p in self.prints.values())
        room -= sum(4 * w.numel() for name, w in self.weights.items() if name not in self.moments)
        room -= sum(2 * m.shape[0] * m.shape[1] + 4 * m.shape[0] for m in self.moments.values())
        copies = {name: self.weights[name].numel() + 4 * self.weights[name].shape[1] for name in self.moments}
        whole = sum(copies.values()) <= _WEIGHTS_SHARE * room
        room -= sum(copies.values()) if whole else 0
        spectra = {name: torch.linalg.eigh(moment) for name, moment in self.moments.items()}
        ranks = ranks_for({name: values for name, (values, _) in spectra.items()}, room)
        if self.moments and not any(ranks.values()):
            raise InputError(
                "Sidecar.packed(share)", "room for the moments", f"{share:g} of a small model", "Use a larger share."
            )
        factors = {
            name: Factor.of(self.moments[name], values, vectors, ranks[name])
            for name, (values, vectors) in spectra.items()
        }
        weights = {name: w for name, w in self.weights.items() if name not in self.moments}
        steps: dict[str, Tensor] = {}
        if whole:
            for name in self.moments:
                codes, scale = eight_bits(self.weights[name])
                weights[name] = codes.float() * scale
                steps[name] = scale / 2
        moments = {name: factor.dense() for name, factor in factors.items()}
        return replace(self, moments=moments, weights=weights, steps=steps, factors=factors)

    def pack(self, words: Mapping[str, str] | None = None, *, share: float | None = None) -> bytes:
        """The bytes of a safetensors file; see `packed` for the share.

        Example:
            >>> from torch import nn
            >>> net = Network.of(nn.Sequential(nn.Linear(9, 99), nn.ReLU(), nn.Linear(99, 9)), torch.zeros(1, 9))
            >>> len(Sidecar.of(net, torch.ones(8, 9)).pack(share=2.0)) > 1000
            True
        """
        small = self.packed(share)
        factors = small.factors
        coded = {name: eight_bits(small.weights[name]) for name in small.moments if name in small.weights}
        biases = {name: w for name, w in small.weights.items() if name not in small.moments}
        tensors = {
            "factors": one_line([f.codes for f in factors.values()], torch.int8),
            "scales": one_line([f.scales for f in factors.values()], torch.float32),
            "rests": one_line([f.rest for f in factors.values()], torch.float16),
            "sizes": one_line([f.size for f in factors.values()], torch.float32),
            "weights": one_line([codes for codes, _ in coded.values()], torch.int8),
            "weight_scales": one_line([scale for _, scale in coded.values()], torch.float32),
            "biases": one_line(list(biases.values()), torch.float32),
            "prints": one_line(list(small.prints.values()), torch.int16),
        }
        return pack_weights(
            {name: tensor for name, tensor in tensors.items() if tensor.numel()},
            {"schema": SCHEMA, "sidecar": small._record(), **(words or {})},
        )

    def _record(self) -> str:
        """Names, shapes and facts, as they are on file; at its longest while not packed."""
        ranks = {name: (*factor.codes.shape, round(factor.explained, 6)) for name, factor in self.factors.items()}
        ranks = ranks or {name: (*moment.shape, 0.123456) for name, moment in self.moments.items()}
        record = {
            "readers": [[name, *rank] for name, rank in ranks.items()],
            "weights": [[name, *self.weights[name].shape] for name in self.moments if name in self.weights],
            "biases": [[name, *bias.shape] for name, bias in self.weights.items() if name not in self.moments],
            "prints": [[name, len(prints)] for name, prints in self.prints.items()],
            "refused": dict(self.refused),
            "examples": self.examples,
            "sha256": self.sha256,
            "statistics": self.statistics,
            "about": dict(self.about),
        }
        return json.dumps(record, separators=(",", ":"))

    @staticmethod
    def load(path: str | Path) -> Sidecar:
        """Read a sidecar's file; every hash in it is checked.

        Raises:
            InputError: No such file, damaged, NaN or infinity in it, or not a sidecar.
        """
        tensors, words = read_tensors(path)
        if words.get("schema") != SCHEMA:
            came = words.get("schema", "another file")
            raise InputError(f"{path}", f"a sidecar ({SCHEMA})", came, "Make one with `planaria sidecar`.")
        try:
            return _read(tensors, json.loads(words["sidecar"]))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            came = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}", "a whole sidecar", came, "Make it again.") from error

    def check(self, net: Network, lesion: Entries | None = None, *, refitted: bool = False) -> None:
        """Whether this is the sidecar of a network, apart from what the lesion has destroyed.

        Every row of every weight without a lost entry must have the stored hash, every surviving weight of a reader
        must agree with the stored one, if there is one, and normalisation statistics must have the stored hash.

        Args:
            net: The network, damaged or not.
            lesion: Entries that may differ; None for none.
            refitted: Whether it may have been refitted before: weights and biases of readers may then be others.

        Raises:
            InputError: Naming the first weight that does not belong.
        """
        if self.sha256 == net.sha256:
            return
        lost = lesion or {}
        if self.statistics and self.statistics != _statistics(net):
            raise self._stranger("running statistics", "normalisation statistics of other values")
        for name, stored in self.prints.items():
            given = net.weights.get(name)
            if given is None or (len(given) if given.ndim else 1) != len(stored):
                raise self._stranger(name, "no weight of that name and size")
            if refitted and name in self.weights:
                continue
            weight = given.cpu()
            hit = lost[name].cpu() if name in lost else torch.zeros_like(weight, dtype=torch.bool)
            clean = ~(hit.flatten(1).any(1) if hit.ndim > 1 else hit.flatten())
            wrong = int((prints_of(weight)[clean] != stored[clean]).sum())
            if wrong:
                raise self._stranger(name, f"{wrong} of {int(clean.sum())} rows that the lesion spares are others")
            if name in self.moments and name in self.weights:
                wrong = int((~agree(weight, self.weights[name], self.steps.get(name)) & ~hit).sum())
                if wrong:
                    raise self._stranger(name, f"{wrong} weights that the lesion spares are others")

    def _stranger(self, name: str, came: str) -> InputError:
        return InputError(
            f"sidecar: weight {name!r}",
            "the weights it was made from, apart from the lesion",
            came,
            "Use the sidecar of this very checkpoint, and a lesion that names all dead units.",
        )

    def example(self) -> Inputs:
        """Two made-up inputs of the form that the network takes, from which its anatomy can be traced.

        Real numbers are noise, tokens 0, and marks (an attention mask, for one) 1 where some inputs had them.
        """

        def made(shape: Sequence[int], kind: str, fill: int) -> Tensor:
            dtype = getattr(torch, kind)
            if not dtype.is_floating_point:
                return torch.full((2, *shape), fill, dtype=dtype)
            return torch.randn(2, *shape, generator=stream(0, "example")).to(dtype)

        parts = self.about.get("layout")
        if not parts:
            return made(self.about["shape"], str(self.about["type"]), 0)
        tensors = [(name, made(shape, kind, fill)) for name, shape, kind, fill in parts]
        return dict(tensors) if parts[0][0] else tuple(tensor for _, tensor in tensors)

    @property
    def bytes(self) -> int:
        """Size of the moments in single precision, upper triangles only; the file is smaller."""
        return sum(m.shape[0] * m.shape[1] * (m.shape[1] + 1) // 2 * 4 for m in self.moments.values())

    def __repr__(self) -> str:
        form = "packed moments" if self.factors else "moments"
        return f"<Sidecar: {form} of {len(self.moments)} readers over {self.examples} inputs>"


def doubt(outputs: Tensor, *, temperature: float = 4.0, least: float = 0.05) -> Tensor:
    """How undecided a classifier is on each input: the importance for a sidecar or a teacher.

    w = (1 - max softmax(outputs / temperature)) / mean + least. A refit that errs least where decisions are close
    changes fewer of them.

    Args:
        outputs: Logits [examples, classes, ...]; of several positions, the mean counts.
        temperature: Softens the softmax.
        least: Added to every weight, which have mean 1.

    Returns:
        Weights [examples].

    Raises:
        InputError: If there is no axis of classes.

    Example:
        >>> doubt(torch.tensor([[9.0, 0.0], [0.1, 0.0]])).argmax()
        tensor(1)

    Source: our own; measured in docs/results.md.
    """
    if outputs.ndim < 2:
        raise InputError("doubt(outputs)", "class scores [examples, classes, ...]", f"shape {list(outputs.shape)}")
    unsure = (1.0 - (outputs.double() / temperature).softmax(1).amax(1)).reshape(len(outputs), -1).mean(1)
    return unsure / unsure.mean().clamp_min(1e-12) + least


def moment_of(features: Tensor, importance: Tensor | None) -> Tensor:
    """Sum over rows of w h h^T with h = (features, 1), double precision [groups, features + 1, features + 1].

    Args:
        features: [groups, rows, features].
        importance: Of each row [rows].
    """
    features = wide(features)
    rows = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    left = rows if importance is None else rows * importance.to(rows.dtype)[None, :, None]
    return torch.bmm(left.transpose(1, 2), rows).double()


def product_of(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Product of weights of rows; None stands for ones."""
    if one is None or other is None:
        return other if one is None else one
    return one * other.to(one.dtype)


def checked_importance(where: str, importance: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Importance with mean 1, on the inputs' device; None stays None.

    Raises:
        InputError: If it does not fit the inputs, or is not finite, negative, or 0 everywhere.
    """
    if importance is None:
        return None
    good = importance.shape == (len(inputs),) and bool(importance.isfinite().all()) and bool((importance >= 0).all())
    if not good or float(importance.sum()) <= 0:
        raise InputError(
            where, f"{len(inputs)} finite weights of at least 0, not all 0", f"{list(importance.shape)} numbers"
        )
    importance = importance.to(inputs.device, torch.double)
    return importance / importance.mean()


def wide(numbers: Tensor) -> Tensor:
    """At least single precision: sums of many numbers in sixteen bits are wrong in the third digit."""
    return numbers.float() if numbers.element_size() < 4 else numbers


def agree(weight: Tensor, stored: Tensor, step: Tensor | None) -> Tensor:
    """Which weights are the stored ones up to their rounding; without a step, exactly."""
    apart = (wide(weight) - stored.to(weight.device)).abs()
    return apart <= (0.0 if step is None else step.to(weight.device) * 1.01)


def _try(net: Network, inputs: Tensor) -> None:
    """Run the network on inputs of a shape it has not been traced with.

    Raises:
        InputError: If it cannot.
    """
    if net.inputs is None or net.inputs.shape[1:] == inputs.shape[1:]:
        return
    try:
        net(inputs[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            "Sidecar.of(inputs)",
            f"inputs of the network's shape {list(net.inputs.shape[1:])}",
            f"{list(inputs.shape[1:])}",
            "Bring them into the form that the network was traced with.",
        ) from error


def _layout(layout: Layout | None, inputs: Tensor) -> list[list[Any]] | None:
    """The tensors that a network takes, as name, shape, type, and what marks are filled with; None for one tensor."""
    if layout is None:
        return None
    given = layout.unpack(inputs)
    tensors = list(given.values()) if isinstance(given, dict) else list(given)
    marks = [not t.is_floating_point() and bool(((t == 0) | (t == 1)).all() and t.any()) for t in tensors]
    return [
        [part.name, list(part.shape), str(part.dtype).removeprefix("torch."), int(mark)]
        for part, mark in zip(layout.parts, marks, strict=True)
    ]


def _saved(net: Network) -> dict[str, Tensor]:
    """Buffers that are in the network's file."""
    return {name: net.buffers[name] for name in net.module.state_dict() if name in net.buffers}


def _statistics(net: Network) -> str:
    """Hash of what normalisations have learnt; how many batches they have seen changes no output."""
    return digest({name: buffer for name, buffer in _saved(net).items() if buffer.is_floating_point()})


def _read(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Sidecar:
    """The inverse of `Sidecar.pack`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"sidecar: {name}", "finite numbers", "NaN or infinity", "Make the sidecar again.")
    about = dict(record["about"])
    kinds = [about["type"], *(kind for _, _, kind, _ in about.get("layout") or ())]
    known = all(isinstance(getattr(torch, str(kind), None), torch.dtype) for kind in kinds)
    if not (known and {"shape", "outputs", "bytes"} <= about.keys()):
        raise ValueError("it does not say what inputs it is for")
    places = dict.fromkeys(tensors, 0)

    def take(key: str, *shape: int) -> Tensor:
        count = math.prod(shape)
        start, places[key] = places[key], places[key] + count
        return tensors[key][start : start + count].view(shape)

    factors, weights, steps = {}, {}, {}
    for name, groups, size, rank, explained in record["readers"]:
        factors[name] = Factor(
            take("factors", groups, size, rank) if rank else torch.zeros(groups, size, 0, dtype=torch.int8),
            take("scales", groups, rank) if rank else torch.zeros(groups, 0),
            take("rests", groups, size),
            take("sizes", groups),
            explained,
        )
    for name, *shape in record["weights"]:
        codes = take("weights", *shape)
        scale = take("weight_scales", *(n if axis == 1 else 1 for axis, n in enumerate(shape)))
        weights[name], steps[name] = codes.float() * scale, scale / 2
    for name, *shape in record["biases"]:
        weights[name] = take("biases", *shape)
    return Sidecar(
        moments={name: factor.dense() for name, factor in factors.items()},
        weights=weights,
        examples=int(record["examples"]),
        refused=dict(record["refused"]),
        sha256=str(record["sha256"]),
        statistics=str(record["statistics"]),
        prints={name: take("prints", count) for name, count in record["prints"]},
        about=about,
        steps=steps,
        factors=factors,
    )
