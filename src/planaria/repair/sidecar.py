"""Sidecar: what is kept beside a checkpoint so that the network can be repaired later without data.

For every reader of units: the second moments E[h h^T] of what it reads, h = (features, 1); its weights, for what the
damage destroys; and short hashes of all rows of all weights, by which a damaged network is recognised.

On file the moments are a factor: the leading eigenvectors v_k sqrt(l_k) in eight bits, each with its own scale, and
the remaining diagonal. How many are kept follows from a limit on the size of the file, relative to the model's.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds, run
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.trees import Entries, digest
from planaria.measure.weights import pack_weights, read_tensors
from planaria.repair.readers import Reader, readers, rows_of, spread, watch

SHARE, CONVOLUTIONAL_SHARE = 0.15, 0.5
"""Usual largest size of the file, as a share of the model's, without and with convolutions."""
SCHEMA = "planaria.sidecar.v1"
_WEIGHTS_SHARE = 0.6
"""Largest part of the file that the readers' weights may take; beyond it they are left out."""
_HEADER, _FRAME = 2560, 1800
"""Bytes set aside for names, shapes and hashes at least; and for all of these but the record, which grows."""
_LEAST = 1e-7
"""Eigenvalues below this, relative to their mean, are not worth their bytes."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Moments of one reader as they are kept on file: G = F F^T + diagonal, with F = codes * scales.

    Attributes:
        codes: Leading eigenvectors times the root of their eigenvalues, in eight bits [groups, features + 1, rank].
        scales: One per eigenvector [groups, rank].
        rest: What is left of the diagonal, relative to `size`, in half precision [groups, features + 1].
        size: Its largest entry [groups].
        explained: Share of the mean square of what the reader reads that lies in these eigenvectors.
    """

    codes: Tensor
    scales: Tensor
    rest: Tensor
    size: Tensor
    explained: float

    @property
    def rank(self) -> int:
        """Eigenvectors kept per group."""
        return self.codes.shape[2]

    @staticmethod
    def of(moment: Tensor, values: Tensor, vectors: Tensor, rank: int) -> Factor:
        """From moments and their eigenvalues (ascending) and eigenvectors."""
        leading = vectors[..., -rank:] * values[:, None, -rank:].clamp_min(0).sqrt() if rank else vectors[..., :0]
        diagonal = moment.diagonal(dim1=1, dim2=2)
        scales = (leading.abs().amax(1) / 127).clamp_min(1e-30).float()
        codes = (leading / scales[:, None, :].double()).round().clamp(-127, 127)
        rest = (diagonal - (codes * scales[:, None, :]).square().sum(2)).clamp_min(0)
        size = rest.amax(1).clamp_min(1e-30).float()
        explained = float(leading.square().sum() / diagonal.sum().clamp_min(1e-30))
        return Factor(codes.to(torch.int8), scales, (rest / size[:, None]).half(), size, explained)

    def dense(self) -> Tensor:
        """The moments [groups, features + 1, features + 1], double precision."""
        factor = self.codes.double() * self.scales[:, None, :].double()
        moment = torch.bmm(factor, factor.transpose(1, 2))
        moment.diagonal(dim1=1, dim2=2).add_(self.rest.double() * self.size[:, None].double())
        return moment


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
    def of(net: Network, inputs: Tensor, importance: Tensor | None = None, *, batch: int = 256) -> Sidecar:
        """Take the moments of an intact network.

        Args:
            net: The intact network.
            inputs: Unlabelled inputs [examples, ...]; a thousand are usually enough.
            importance: Weight of each input in the moments [examples], at least 0; by default all the same. `doubt`
                gives good ones for classifiers.
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
        start = time.process_time()
        net = net if net.inputs is not None else net.with_inputs(inputs)
        inputs = inputs.to(net.device)
        found, refused = readers(net)
        heard = {name for group in Anatomy.of(net).groups for name in group.owners["outgoing"]}
        found = {name: reader for name, reader in found.items() if name in heard}
        each = checked_importance("Sidecar.of(importance)", importance, inputs)
        _try(net, inputs)
        order, looked = ({}, Cost()) if each is None else rows_of(net, found, inputs)
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        at = 0

        def add(reader: Reader, x: Tensor, z: Tensor) -> None:
            del z
            features = reader.features(x)
            mine = None if each is None else each[at : at + len(part)]
            moment = moment_of(features, spread(mine, features.shape[1], order.get(reader.weight)))
            sums[reader.weight] = sums[reader.weight] + moment if reader.weight in sums else moment
            rows[reader.weight] = rows.get(reader.weight, 0) + features.shape[1]

        outputs = None
        for part in inputs.split(batch):
            again, _ = readers(net, len(part))
            outputs = run(net, part, watch({name: again[name] for name in found if name in again}, add))
            at += len(part)
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
            seconds=time.process_time() - start,
        )
        names = [*moments, *(r.bias for n, r in found.items() if n in moments and r.bias is not None)]
        return Sidecar(
            moments=moments,
            weights={name: net.weights[name] for name in names},
            examples=len(inputs),
            refused=refused,
            sha256=net.sha256,
            prints={name: _prints(weight) for name, weight in net.weights.items()},
            statistics=_statistics(net),
            about={
                "shape": list(inputs.shape[1:]),
                "type": str(inputs.dtype).removeprefix("torch."),
                "outputs": outputs.shape[-1] if isinstance(outputs, Tensor) else None,
                "bytes": sum(t.numel() * t.element_size() for t in [*net.weights.values(), *_saved(net).values()]),
                "convolutional": any(found[name].convolution is not None for name in moments),
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
        ranks = _ranks({name: values for name, (values, _) in spectra.items()}, room)
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
                codes, scale = _coded(self.weights[name])
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
        coded = {name: _coded(small.weights[name]) for name in small.moments if name in small.weights}
        biases = {name: w for name, w in small.weights.items() if name not in small.moments}
        tensors = {
            "factors": _line([f.codes for f in factors.values()], torch.int8),
            "scales": _line([f.scales for f in factors.values()], torch.float32),
            "rests": _line([f.rest for f in factors.values()], torch.float16),
            "sizes": _line([f.size for f in factors.values()], torch.float32),
            "weights": _line([codes for codes, _ in coded.values()], torch.int8),
            "weight_scales": _line([scale for _, scale in coded.values()], torch.float32),
            "biases": _line(list(biases.values()), torch.float32),
            "prints": _line(list(small.prints.values()), torch.int16),
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
            wrong = int((_prints(weight)[clean] != stored[clean]).sum())
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


def _ranks(values: Mapping[str, Tensor], room: int) -> dict[str, int]:
    """Eigenvectors to keep of each reader: first those that explain most of what it reads for their bytes."""
    steps: list[tuple[float, str, int]] = []
    for name, spectrum in values.items():
        relative = (spectrum / spectrum.mean(1, keepdim=True).clamp_min(1e-30)).amax(0).flip(0)
        size = spectrum.shape[1]
        cost = spectrum.shape[0] * (size + 4)
        steps += [(-float(value) / size / cost, name, cost) for value in relative if float(value) > _LEAST]
    ranks, full = dict.fromkeys(values, 0), set()
    for _, name, cost in sorted(steps):
        if name in full or cost > room:
            full.add(name)
            continue
        ranks[name] += 1
        room -= cost
    return ranks


def _coded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight in eight bits, with one scale for each place on axis 1 (or for all)."""
    apart = [axis for axis in range(weight.ndim) if axis != 1]
    scale = (weight.float().abs().amax(apart, keepdim=True) / 127).clamp_min(1e-30)
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def _prints(weight: Tensor) -> Tensor:
    """Hash of every row (axis 0; every entry of a vector), 16 bits."""
    # Copied, since a number seen through a larger shape has no bytes of its own.
    flat = torch.empty(weight.numel(), dtype=weight.dtype).copy_(weight.detach().reshape(-1))
    count = len(weight) if weight.ndim else 1
    word = {1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    data = flat.view(word).view(count, -1 if flat.numel() else 0).to(torch.int64)
    place = torch.arange(1, data.shape[1] + 1)
    # Any odd numbers do; products and sums wrap around.
    key = place * 0x9E3779B97F4A7C1 ^ (place << 21)
    mixed = ((data + 1) * (key | 1)).sum(1)
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B
    return ((mixed ^ (mixed >> 32)) & 0xFFFF).to(torch.int32).to(torch.int16)


def _saved(net: Network) -> dict[str, Tensor]:
    """Buffers that are in the network's file."""
    return {name: net.buffers[name] for name in net.module.state_dict() if name in net.buffers}


def _statistics(net: Network) -> str:
    """Hash of what normalisations have learnt; how many batches they have seen changes no output."""
    return digest({name: buffer for name, buffer in _saved(net).items() if buffer.is_floating_point()})


def _line(tensors: list[Tensor], kind: torch.dtype) -> Tensor:
    """All numbers of some tensors, one after another."""
    return torch.cat([t.detach().cpu().flatten().to(kind) for t in tensors]) if tensors else torch.zeros(0, dtype=kind)


def _read(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Sidecar:
    """The inverse of `Sidecar.pack`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"sidecar: {name}", "finite numbers", "NaN or infinity", "Make the sidecar again.")
    about = dict(record["about"])
    known = isinstance(getattr(torch, about["type"], None), torch.dtype)
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
