"""The GPU itself: bandwidths, matrix rates and the latencies of every hand-off a kernel could use, by benchmarks/first_light."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.environment import REPOSITORY


def microbench(arguments: Sequence[str]) -> int:
    """Runs first light with these arguments; its exit status."""
    return subprocess.run([sys.executable, "-m", "benchmarks.first_light", *arguments], cwd=REPOSITORY, check=False).returncode
