"""Prepared calls: what a call launches is recorded once and then launched again on other tensors, without planning.

A call is known by its key: the kind of its tensors (`torch_internals.guard`) and its other arguments. The first calls of a key
are served as usual. At the third, the call is recorded (`recorder`) and becomes a sequence of launches (`sequence`), with a
function that allocates the results, fills in the addresses and launches the whole sequence by one call of the C interface
(`runner`). Each operator keeps its prepared calls in a `table`; the public functions have shortcuts past their own checks
(`shortcut`), where backward is one sequence as well. Whatever cannot be recorded, or does not match, is served as usual.

TORCH_UNROLL_PREPARE says from which sight of a key on calls are prepared: 3 by default, and never for 0.
"""

from __future__ import annotations

import os


def _sights() -> int:
    text = os.environ.get("TORCH_UNROLL_PREPARE", "") or "3"
    if not text.isdecimal():
        raise ValueError(f"TORCH_UNROLL_PREPARE: expected a number of calls, or 0 to prepare none, got {text!r}")
    return int(text)


#: At which sight of a key a call is prepared; 0 for never.
sights = _sights()
