"""Reasons: why a layer with weights has no units of its own, in words that its user understands."""

from __future__ import annotations

from planaria.core.graph import Graph, call_is_active

OUTPUTS = "its outputs are the network's outputs"
HEADS = "its outputs are queries, keys or values: its units are the attention heads"
UNUSED = "its weights are not used on the example inputs"
PARTS = "its outputs are parts of the units of "
NORMAL = "a normalisation: it rescales the units of other layers"
FIXED = "what is computed from it is the same for every input (positions, first states, scaled weights)"
BESIDE = "it scales, shifts or stands beside the activations of other layers"
TIED = "its weights are used elsewhere in the network too (tied weights)"

_WORDS = {
    "native_layer_norm": "a layer normalisation",
    "_fused_rms_norm": "a root-mean-square normalisation",
    "native_group_norm": "a group normalisation",
    "_softmax": "a softmax",
    "_log_softmax": "a softmax",
    "_safe_softmax": "a softmax",
    "residual": "an addition to other activations",
    "output": "the network's outputs",
    "add": "an addition",
    "sub": "a subtraction",
    "copy": "an assignment into another tensor",
    "mm": "a product with its weight on the left",
    "bmm": "a product of two activations",
    "attention": "an attention",
    "pow": "a power",
}
"""What users call an operation of torch's."""


def needless(reason: str) -> bool:
    """Whether a layer that has no units for this reason needs no tap, because others stand for it."""
    return reason in {OUTPUTS, HEADS, UNUSED, NORMAL, FIXED, BESIDE} or reason.startswith(PARTS)


def words(name: str) -> str:
    """What users call an operation of torch's, or another end of an activation."""
    return _WORDS.get(name, name.strip("_"))


def reason_of(graph: Graph, name: str) -> str:
    """Why a weight belongs to no unit, if all that is known is who reads it."""
    calls = [graph.calls[at] for at in sorted(graph.reads[name])]
    if not calls:
        return UNUSED
    if any(call.normalises is not None for call in calls):
        return NORMAL
    first = calls[0]
    if not call_is_active(first):
        return FIXED
    if first.product is None and (first.pointwise or first.name in {"cat", "stack"}):
        return BESIDE
    return f"its weights are used by {words(first.name)}, for which there is no rule"
