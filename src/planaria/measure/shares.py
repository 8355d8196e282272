"""Which scores are shares of right answers. Apart from the scores themselves, so that reports need no torch."""

from __future__ import annotations

import re

TOP = re.compile("top([1-9][0-9]{0,8})")
"""Names of the scores that count labels among the K largest outputs."""


def is_share(name: str) -> bool:
    """Whether a score of this name is a share of right answers, written in percent.

    Example:
        >>> [is_share(name) for name in ("accuracy", "balanced accuracy", "agreement", "top5", "f1", "r2")]
        [True, True, True, True, False, False]
    """
    return "accuracy" in name.lower() or name == "agreement" or TOP.fullmatch(name) is not None
