"""A small BERT in a Hugging Face folder: make one, load it back, lesion its heads and neurons, rescue it.

    python examples/bert_folder.py           # about half a minute on one core; needs pip install 'planaria[hf]'
    python examples/bert_folder.py --quick   # a few seconds

Keep the folder, and the same goes from a shell, as with any folder that save_pretrained has written:
    python examples/bert_folder.py --folder bert
    planaria rescue --model hf:bert --task 'text:bert?tokenizer=bert' --kinds head,neuron --doses 0.5,0.75
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertTokenizer

import planaria as pl

OPENINGS = ["i think", "we say", "they feel", "i do not think", "we never say", "they do not feel"]
THINGS = ["film", "book", "play", "song", "meal", "trip", "talk", "game", "room", "walk", "view", "poem"]
GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "awful", "dull", "poor"]


def reviews() -> list[tuple[str, int]]:
    """Sentences such as "we never say that the meal was not awful", and whether they praise; in mixed order."""
    rows = []
    for opening, thing, turn, word in itertools.product(OPENINGS, THINGS, ["", "not ", "never "], GOOD + BAD):
        praises = (word in GOOD) ^ bool(turn) ^ ("not" in opening or "never" in opening)
        rows.append((f"{opening} that the {thing} was {turn}{word}", int(praises)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[place] for place in order]


def write(folder: Path, parts: dict[str, list[tuple[str, int]]]) -> None:
    """A model with fresh weights, its tokenizer and its data, as save_pretrained leaves them."""
    words = sorted({word for text, _ in parts["train"] for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(folder)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, num_labels=2, **sizes)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for part, rows in parts.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])


def main(quick: bool, folder: Path) -> None:
    rows = reviews()
    parts = {"train": rows[:1400], "test": rows[1400:]}
    write(folder, parts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)

    # What the tokenizer returns is what the model is called with: token numbers, an attention mask, and so on.
    split = {}
    for part, pairs in parts.items():
        texts, labels = zip(*pairs, strict=True)
        batch = tokenizer(list(texts), padding="max_length", max_length=16, return_tensors="pt")
        split[part] = (batch, torch.tensor(labels))
    task = pl.Task.of("reviews", split["train"], split["test"])
    net = pl.Network.of(model, task.train.examples)
    training = pl.settle(pl.Retrain(task, pl.Adam(2e-3), batch=64), pl.updates(400))
    net = training(net, pl.stream(0, "train"))
    net.to_module().save_pretrained(folder)
    print(f"intact: {task.score(net):.3f}, in {folder}")

    anatomy = pl.Anatomy.of(net)
    for group in anatomy.groups:
        print(f"  {group.layer:<46}{group.count:>4} units of kind {group.kind}")
    anatomy.verify(net)
    damage = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True, kinds=("head", "neuron")))
    repairs = {
        "refit": pl.Refit(pl.Sidecar.of(net, task.train.inputs)),
        "sequential": pl.Refit(pl.Teacher(net, task.train.inputs[:512])),
        "retrain": pl.Retrain(task, batch=64),
    }
    seeds, within = range(2 if quick else 5), pl.updates(20 if quick else 100)
    print(pl.rescue(net, damage, repairs, task, doses=[0.75] if quick else [0.5, 0.75], seeds=seeds, within=within))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer updates and seeds")
    parser.add_argument("--folder", type=Path, help="where to leave the model; else nowhere")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(exist_ok=True)
        main(arguments.quick, arguments.folder)
    else:
        with tempfile.TemporaryDirectory() as name:
            main(arguments.quick, Path(name))
