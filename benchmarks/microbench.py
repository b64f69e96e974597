"""Bandwidths, matrix rates and latencies of the GPU itself, measured by benchmarks/first_light."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.environment import REPOSITORY


def microbench(arguments: Sequence[str]) -> int:
    """Runs first_light with these arguments and returns its exit status."""
    return subprocess.run([sys.executable, "-m", "benchmarks.first_light", *arguments], cwd=REPOSITORY, check=False).returncode
