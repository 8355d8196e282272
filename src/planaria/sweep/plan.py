"""Plans: which way the effects of each layer's lesions are computed, at what price, and why not faster."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planaria.core.network import Network
from planaria.sweep.certify import certifiable
from planaria.sweep.chain import Chain
from planaria.sweep.curve import curvable
from planaria.sweep.delta import delta_cost, deltable
from planaria.sweep.edges import mappable
from planaria.sweep.lesions import Job
from planaria.sweep.program import Program
from planaria.sweep.replay import reached
from planaria.sweep.tally import Judge

CERTIFY, DELTA, EDGES, NESTED = "certify", "delta", "edges", "nested"
EDIT_NEXT, REPLAY, BRUTE = "edit next", "replay", "brute force"
IN_CHAIN = frozenset([CERTIFY, DELTA, EDGES, NESTED])
JUDGING = 4000
"""Multiply-adds that take as long as scoring one example's outputs (measured: 0.1 microseconds)."""

TRIED = 64
"""Lesions whose price is counted to tell that of many."""

MEANINGS = {
    CERTIFY: "predictions proven unchanged are skipped, the others evaluated by an update of rank one",
    DELTA: "the unit's contribution is taken out of the next product of the chain",
    EDIT_NEXT: "the unit's contribution is taken out of the product that reads it, the rest is run again",
    REPLAY: "what depends on the lesion is run again by the same operations, bit-identical",
    BRUTE: "the whole damaged network is run",
    EDGES: "a safe interval for each unit's input; single weights are tried only where they leave it",
    NESTED: "each step takes out the units that die there, nothing else is done again",
}
"""Way -> what is done."""


@dataclass(frozen=True)
class Way:
    """How the lesions of one layer (or one kind) are computed.

    Attributes:
        key: Layer, weight, "orders" or "lesions".
        lesions: How many.
        way: A key of MEANINGS.
        forwards: Estimated price, in forward passes over the same inputs.
        because: Why no faster way was taken; "" if this is the fastest there is.
    """

    key: str
    lesions: int
    way: str
    forwards: float
    because: str = ""


@dataclass(frozen=True)
class Plan:
    """The ways of a sweep, in the order of execution.

    Attributes:
        ways: One per layer, weight, or kind of lesion.
        route: Name of the route of matrix products, see `Route`.
        chunk: Examples per pass of what is run again.
    """

    ways: tuple[Way, ...]
    route: str
    chunk: int

    def explain(self) -> str:
        """The plan as a table for reading.

        Example:
            >>> print(Plan((Way("fc1", 512, "certify", 0.2),), "oneDNN", 1000).explain())
            layer  lesions  way      forwards
            fc1        512  certify       0.2
            certify: predictions proven unchanged are skipped, the others evaluated by an update of rank one
            matrix products by oneDNN, 1000 examples per pass
        """
        head = ("layer", "lesions", "way", "forwards")
        cells = [head, *((w.key, f"{w.lesions:,}", w.way, f"{w.forwards:.3g}") for w in self.ways)]
        wide = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = []
        for row in cells:
            texts = (row[0].ljust(wide[0]), row[1].rjust(wide[1]), row[2].ljust(wide[2]), row[3].rjust(wide[3]))
            lines.append("  ".join(texts))
        lines += [f"{way}: {MEANINGS[way]}" for way in dict.fromkeys(w.way for w in self.ways)]
        lines += [f"{w.key}: {w.because}" for w in self.ways if w.because]
        return "\n".join([*lines, f"matrix products by {self.route}, {self.chunk} examples per pass"])


def ways_of(
    job: Job, net: Network, program: Program | str, chain: Chain | str, judge: Judge, alike: str
) -> tuple[Way, ...]:
    """The cheapest way for each key of a job, by estimated multiply-adds.

    Args:
        job: Lesions.
        net: The network.
        program: Its recorded pass, or why there is none.
        chain: It as a chain, or why it is none.
        judge: How outputs are scored.
        alike: Why only the network's own operations may be used; "" if others may.
    """
    ways = []
    for key in job.shapes:
        count = math.prod(job.shapes[key])
        reason = program if isinstance(program, str) else unreplayable(job, key, net, program)
        if isinstance(program, str) or reason:
            ways.append(Way(key, count, BRUTE, float(count), reason))
            continue
        find = _of_units if key in job.units else _of_weight if key in job.weights else _of_sets
        ways.append(find(job, key, net, program, chain, judge, alike))
    return tuple(ways)


def unreplayable(job: Job, key: str, net: Network, program: Program) -> str:
    """Why the lesions of a key cannot be replayed; "" if they can."""
    layers = {key} if key in job.units else set() if job.nested is None else set(job.nested.layers)
    names = {key} if key in job.weights else set()
    if key == "lesions":
        layers = {layer for lesion in job.lesions for layer in lesion.units}
        names = {name for lesion in job.lesions for name in lesion.weights}
    if not layers <= program.gates.keys():
        return "its units lie along several axes, or examples are not in order"
    if names and not program.exchanges(net, sorted(names)):
        return "what is computed from the weights leaves the tensors on the way"
    return ""


def _replay(job: Job, key: str, net: Network, program: Program, because: str) -> Way:
    lesions = job.of_key(key, net)
    # Entries of a weight reach the same, and of many lesions some tell what all cost.
    tried = range(0, len(lesions), max(1, len(lesions) if key in job.weights else len(lesions) // TRIED))
    work = [program.remaining(reached(program, lesions[place])) + JUDGING for place in tried]
    price = len(lesions) * sum(work) / max(1, len(work)) / max(1, program.work)
    return Way(key, len(lesions), REPLAY, price, because)


def _of_units(
    job: Job, layer: str, net: Network, program: Program, chain: Chain | str, judge: Judge, alike: str
) -> Way:
    count, work = len(job.units[layer].units), max(1, program.work)
    found = [_replay(job, layer, net, program, alike)]
    if alike:
        return found[0]
    reasons: list[str] = []
    if layer in program.reads:
        rest = program.remaining(program.products(layer))
        found.append(Way(layer, count, EDIT_NEXT, count * (rest + JUDGING) / work))
    if isinstance(chain, str):
        reasons.append(f"not a chain of products: {chain}")
    else:
        assert net.inputs is not None
        why = deltable(chain, layer)
        if why:
            reasons.append(why)
        else:
            rest = delta_cost(chain, layer, net.inputs) + count * JUDGING // 4  # judged many at a time
            found.append(Way(layer, count, DELTA, rest / work))
        why = certifiable(chain, layer, judge)
        if why:
            reasons.append(why)
        else:
            found.append(Way(layer, count, CERTIFY, 100.0 * count / work))
    best = min(found, key=lambda way: way.forwards)
    return replace(best, because="; ".join(reasons) if best.way in {REPLAY, EDIT_NEXT} else "")


def _of_weight(
    job: Job, name: str, net: Network, program: Program, chain: Chain | str, judge: Judge, alike: str
) -> Way:
    reason = alike
    if not reason and not judge.counts_predictions:
        reason = "the score depends on more than the prediction"
    if not reason:
        reason = chain if isinstance(chain, str) else mappable(chain, name) or _laid_out(chain, name, net)
    if reason:
        return _replay(job, name, net, program, reason)
    count = math.prod(job.shapes[name])
    return Way(name, count, EDGES, 1.0 + 1e-5 * count)


def _of_sets(job: Job, key: str, net: Network, program: Program, chain: Chain | str, judge: Judge, alike: str) -> Way:
    del judge
    reason = alike
    if not reason and job.nested is not None:
        reason = chain if isinstance(chain, str) else curvable(chain, job.nested.layers)
        if not reason:
            count = math.prod(job.shapes[key])
            return Way(key, count, NESTED, 0.05 * count)
    return _replay(job, key, net, program, reason)


def _laid_out(chain: Chain, name: str, net: Network) -> str:
    """Why a chain's weight is not the network's; "" if it is."""
    if name in chain.elsewhere:
        return "it is read elsewhere too"
    stage = next(stage for stage in chain.stages if name in {stage.name, stage.bias})
    same = name == stage.bias or stage.weight.data_ptr() == net.weights[name].data_ptr()
    return "" if same else "the network holds it transposed, or as a part of another weight"
