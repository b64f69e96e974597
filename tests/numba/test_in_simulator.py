"""Runs each `simulated_*.py` of this folder in a process of its own, because the simulator is chosen once, when numba is
imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs `pip install 'numba-cuda[cu13]'`")
FOLDER = Path(__file__).resolve().parent


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("simulated_*.py")))
def test_in_simulator(file: str) -> None:
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, str(FOLDER / "simulator.py"), *options, str(FOLDER / file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=FOLDER.parents[1], timeout=900
    )
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
