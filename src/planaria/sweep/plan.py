"""Plans: which way the effects of each layer's lesions are computed, at what price, and why not faster."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planaria.core.network import Network
from planaria.sweep.certify import certifiable
from planaria.sweep.chain import Chain
from planaria.sweep.delta import delta_cost, deltable
from planaria.sweep.program import Program
from planaria.sweep.replay import Selection
from planaria.sweep.tally import Judge

CERTIFY, DELTA, EDGES, NESTED = "certify", "delta", "edges", "nested"
EDIT_NEXT, REPLAY, BRUTE = "edit next", "replay", "brute force"
IN_CHAIN = frozenset([CERTIFY, DELTA, EDGES, NESTED])
JUDGING = 4000
"""Multiply-adds that take as long as scoring one example's outputs (measured: 0.1 microseconds)."""

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


def way_of_units(
    chosen: Selection, net: Network, program: Program | str, chain: Chain | str, judge: Judge, bitwise: bool
) -> Way:
    """The cheapest way for the units of a layer, by estimated multiply-adds.

    Args:
        chosen: Layer and units.
        net: The network.
        program: The network's program, or why there is none.
        chain: It as a chain, or why it is none.
        judge: How outputs are scored.
        bitwise: Whether only bit-identical ways may be taken.
    """
    count = len(chosen.units)
    if isinstance(program, str) or chosen.layer not in program.gates:
        because = program if isinstance(program, str) else "its activation lies along several axes"
        return Way(chosen.layer, count, BRUTE, float(count), because)
    assert net.inputs is not None
    work = max(1, program.work)
    first = program.first([chosen.layer])
    found = [Way(chosen.layer, count, REPLAY, count * (program.remaining(first) + JUDGING) / work)]
    reasons: list[str] = []
    if bitwise:
        return found[0]
    if chosen.layer in program.reads:
        outs = {program.ops[read.op].writes[0] for read in program.reads[chosen.layer]}
        rest = program.remaining(out for out in outs if out is not None)
        found.append(Way(chosen.layer, count, EDIT_NEXT, count * (rest + JUDGING) / work))
    if isinstance(chain, str):
        reasons.append(f"not a chain of products: {chain}")
    else:
        why = deltable(chain, chosen.layer)
        if why:
            reasons.append(why)
        else:
            rest = delta_cost(chain, chosen.layer, net.inputs) + count * JUDGING // 4  # judged many at a time
            found.append(Way(chosen.layer, count, DELTA, rest / work))
        why = certifiable(chain, chosen.layer, judge)
        if why:
            reasons.append(why)
        else:
            found.append(Way(chosen.layer, count, CERTIFY, 100.0 * count / work))
    best = min(found, key=lambda way: way.forwards)
    return replace(best, because="; ".join(reasons) if best.way in {REPLAY, EDIT_NEXT} else "")
