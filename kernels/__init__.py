"""Where the kernel sources are, and their digest."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "cuda"


@cache
def digest() -> str:
    """Sixteen hex digits that change with any kernel source or table: the identity of a measurement or a cached binary."""
    total = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".h", ".cuh", ".cu", ".py", ".json"}:
            total.update(path.relative_to(SOURCES).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]
