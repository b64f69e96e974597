"""Where the kernel sources are, and their digest."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "cuda"


@cache
def digest(*suffixes: str) -> str:
    """Sixteen hex digits that change with any kernel source or table: the identity of a measurement or a cached binary. Of files
    with these suffixes alone, where some are named."""
    total = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (suffixes or (".h", ".cuh", ".cu", ".py", ".json")):
            total.update(path.relative_to(SOURCES).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def device_digest() -> str:
    """The same of what is compiled, which an object carries: whether it was built from these sources."""
    return digest(".h", ".cuh", ".cu")
