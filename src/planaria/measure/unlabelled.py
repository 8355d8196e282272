"""Data without labels: what the intact network says is what a damaged one should say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import InputError, nearest
from planaria.core.network import Network
from planaria.core.port import Inputs, Layout, Port
from planaria.measure.data import Data, hold_out
from planaria.measure.labels import IGNORED
from planaria.measure.losses import mse
from planaria.measure.scores import R2
from planaria.measure.task import Task

WAYS = ("agreement", "similarity")
"""How answers are compared: by the class they name, or number by number."""


@dataclass(frozen=True, eq=False, repr=False)
class Unlabelled:
    """Inputs in three splits that wait for a network whose answers become their targets.

    Loaded by a task text whose data have no labels, or whose key `score` is "agreement" or "similarity".

    Attributes:
        name: Text it was loaded from.
        splits: "train", "validation" and "test". Only the inputs count, and where targets are -100: nothing is asked
            there.
        by: "agreement", "similarity", or None: agreement, where the network gives more than one number per input.
        loss: Name of the loss that repairs lower; None: "cross_entropy" or "cosine", as the answers are compared.
        classes: Outputs of the network, where that is known beforehand.
        preprocessing: What was done to the raw data, JSON-able; part of the record.
        split: How the splits were chosen, in words.

    Example:
        >>> import torch
        >>> net = Network.of(torch.nn.Linear(3, 2), torch.zeros(1, 3))
        >>> answered = Unlabelled.of("mine", torch.randn(20, 3), torch.randn(8, 3)).answered(net)
        >>> answered.scorer.name, answered.classes, answered.score(net)
        ('agreement', 2, 1.0)
    """

    name: str
    splits: Mapping[str, Data]
    by: str | None = None
    loss: str | None = None
    classes: int | None = None
    preprocessing: dict[str, object] = field(default_factory=dict)
    split: str = "given"

    @staticmethod
    def of(name: str, train: Inputs, test: Inputs, *, validation: Inputs | None = None) -> Unlabelled:
        """Inputs in memory.

        Args:
            name: Name for reports.
            train: A tensor [N, ...], or the positional or keyword arguments of a model that takes several.
            test: The same.
            validation: The same, or None: the last tenth of train.

        Raises:
            InputError: Unusable inputs, or too few.
        """
        given = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
        splits = {}
        for part, inputs in given.items():
            layout = Layout.of(inputs, part)
            rows = Port(layout).rows(inputs)
            splits[part] = Data(rows, torch.zeros(len(rows)), layout)
        split = "given"
        if validation is None:
            count = max(1, len(splits["train"]) // 10)
            splits["train"], splits["validation"] = hold_out(splits["train"], count)
            split = f"validation is the last {count} of train"
        return Unlabelled(name, splits, split=split)

    def answered(self, net: Callable[..., Any], by: str | None = None) -> Task:
        """The task to answer as this network does.

        By agreement, the targets are the network's answers, argmax of its outputs; the score is the share of examples
        on which another network gives the same answer. By similarity, the targets are its outputs themselves and the
        score is their mean cosine; r2, where a network gives one number per input, which has no direction. Either way
        the network itself has the best score there is, right or wrong: the task measures what damage changes.
        Where several positions of a row are answered (tokens), none is asked of positions that `attention_mask` hides.

        Args:
            net: The intact network, or any function of inputs [examples, ...] to outputs.
            by: "agreement" or "similarity"; None as the data say, else agreement.

        Returns:
            The task, on the device of the data. Its preprocessing says that its targets are answers, and whose.

        Raises:
            InputError: Outputs that are NaN or infinite, or for agreement not the scores of two classes or more.

        Not guaranteed: by similarity, that hidden positions do not count. Let the network give one row per text.
        """
        way = by or self.by
        if way is not None and way not in WAYS:
            raise InputError("Unlabelled.answered(by)", " or ".join(WAYS), repr(way), nearest(str(way), WAYS))
        train, validation, test = (self.splits[part] for part in ("train", "validation", "test"))
        asked = Task(self.name, train, validation, test, mse, R2, None)
        outputs = {part: asked.outputs(net, data) for part, data in self.splits.items()}
        for part, answer in outputs.items():
            if not bool(answer.isfinite().all()):
                remedy = "Its answers cannot be targets: check the weights."
                raise InputError(f"the network's answers to {part}", "finite numbers", "NaN or infinite ones", remedy)
        single = outputs["train"].shape[1:].numel() == 1
        way = way or ("similarity" if single else "agreement")
        classes = None
        targets = {part: answer.to(self.splits[part].inputs.device) for part, answer in outputs.items()}
        if way == "agreement":
            axis = class_axis(outputs["train"], self.splits["train"])
            classes = outputs["train"].shape[axis]
            targets = {part: _asked(answer.argmax(axis), self.splits[part]) for part, answer in targets.items()}
        given = {part: replace(data, targets=targets[part]) for part, data in self.splits.items()}
        made = Task.of(
            self.name,
            given["train"],
            given["test"],
            validation=given["validation"],
            loss=self.loss or ("cross_entropy" if way == "agreement" else "mse" if single else "cosine"),
            score="r2" if single else way,
            classes=classes,
        )
        whose = f"network {net.sha256[:12]}" if isinstance(net, Network) else "a network"
        record = {**self.preprocessing, "targets": f"the answers of {whose}, by {way}"}
        return replace(made, preprocessing=record, split=self.split)

    @property
    def output_size(self) -> int:
        """Numbers a network must give per input, 0 where any will do."""
        return self.classes or 0

    def to(self, device: torch.device | str) -> Unlabelled:
        """The same with its data on a device."""
        return replace(self, splits={part: data.to(device) for part, data in self.splits.items()})

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(data)} {part}" for part, data in self.splits.items())
        return f"<Unlabelled {self.name!r}: {sizes}>"


def class_axis(outputs: Tensor, data: Data) -> int:
    """Dimension of the class scores: 1, or the last one where the dimensions before it are those of the inputs.

    Args:
        outputs: Of a network, [N, ...].
        data: Its inputs.

    Raises:
        InputError: Fewer than two classes, or shapes that do not tell.

    Example:
        >>> class_axis(torch.zeros(2, 5, 9), Data(torch.zeros(2, 5).long(), torch.zeros(2, 5).long()))
        2
    """
    remedy = "Use score=similarity, which compares the numbers themselves."
    if outputs.ndim < 2 or outputs.shape[1:].numel() < 2:
        raise InputError("the network's answers", "scores of two classes or more", list(outputs.shape), remedy)
    if outputs.ndim == 2:
        return 1
    parts = [tuple(data.inputs.shape[1:])] if data.layout is None else [part.shape for part in data.layout.parts]
    last = tuple(outputs.shape[1:-1]) in parts
    # Images have channels before their positions, which may be fewer in the outputs.
    first = any(tuple(outputs.shape[2:]) in (part, part[1:]) for part in parts)
    first = first or (not last and outputs.ndim == 4 and any(len(part) == 3 for part in parts))
    if last == first:
        expected = "class scores in dimension 1 or the last, the others as in the inputs"
        raise InputError("the network's answers", expected, list(outputs.shape), remedy)
    return outputs.ndim - 1 if last else 1


def _asked(answers: Tensor, data: Data) -> Tensor:
    """The answers, without those to positions of which nothing is asked."""
    if data.targets.shape == answers.shape and not data.targets.is_floating_point():
        answers = answers.masked_fill(data.targets == IGNORED, IGNORED)
    if data.layout is not None:
        inputs = data.layout.unpack(data.inputs)
        # A decoder answers at the positions of its own inputs.
        name = "decoder_attention_mask" if "decoder_input_ids" in data.layout.names else "attention_mask"
        shown = inputs.get(name) if isinstance(inputs, dict) else None
        if shown is not None and shown.shape == answers.shape:
            answers = torch.where(shown.bool(), answers, IGNORED)
    return answers
