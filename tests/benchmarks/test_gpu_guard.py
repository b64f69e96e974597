"""After a test that loses the GPU, no other test fails: the rest is skipped, or run by another worker. The GPU here is made up.

Also tested: the GPU memory that tests share, which tests are marked `gpu`, and their time limits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CONFTEST = """
import pytest
import torch

from tests import gpu_guard

lost = False

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_available, torch.cuda.synchronize = (lambda: True), synchronize

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: on a GPU")
    config.pluginmanager.register(gpu_guard)
"""

FILE = """
import time, pytest, torch, conftest
from dataclasses import dataclass

@dataclass
class Target:
    device: torch.device

pytestmark = pytest.mark.gpu

def test_a(): pass

def test_loses_the_device_in_passing():
    conftest.lost = True

@pytest.mark.parametrize("n", range(8))
def test_b(n):
    assert not conftest.lost, "a wrong result"

def test_loses_the_device_and_fails():
    conftest.lost = True
    assert False, "what it saw first"

@pytest.mark.parametrize("n", range(8))
def test_c(n):
    assert not conftest.lost, "a wrong result"
"""


@pytest.fixture
def guarded(tmp_path: Path):
    """Returns a function that runs pytest, with the given plugins, on tests of a made-up GPU."""

    def run(tests: str, *options: str, plugins: tuple[str, ...] = ()) -> str:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_it.py").write_text(tests)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        path = os.pathsep.join([str(TESTS), environment.get("PYTHONPATH", "")])
        environment |= {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
        loaded = [word for plugin in plugins for word in ("-p", plugin)]
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "--strict-markers", *loaded, *options, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False).stdout

    return run


def test_without_workers_the_rest_is_skipped_and_nothing_is_called_wrong(guarded) -> None:
    said = guarded(FILE)
    assert "a wrong result" not in said
    assert "ERROR test_it.py::test_loses_the_device_in_passing - RuntimeError: CUDA error: an illegal memory access" in said
    assert "test_loses_the_device_in_passing has left the GPU unusable by this process" in said
    assert "2 passed, 17 skipped, 1 error" in said


@pytest.mark.skipif(find_spec("xdist") is None, reason="needs pytest-xdist: pip install pytest-xdist")
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_worker_ends_and_another_runs_the_rest(workers: str, guarded) -> None:
    said = guarded(FILE, "-n", workers, plugins=("xdist.plugin",))
    assert "a wrong result" not in said
    assert "what it saw first" in said
    assert "CUDA error: an illegal memory access" in said
    lines = said.splitlines()
    assert sum(line.startswith("PASSED") and ("test_b" in line or "test_c" in line) for line in lines) == 16
    assert not [line for line in lines if line.startswith(("SKIPPED", "FAILED")) and "loses" not in line]


MEMORY = """
import fcntl, pytest, torch, weakref

GPU = torch.device("cuda", 0)
torch.cuda.mem_get_info = lambda device: (10 * 2**30, 80 * 2**30)
torch.cuda.is_initialized = lambda: True
freed, held_by = [], []
torch.cuda.empty_cache = lambda: freed.append(True)

def test_enough(gpu_memory): gpu_memory(GPU, 9 * 2**30)

def test_too_little(gpu_memory): gpu_memory(GPU, 11 * 2**30)

def test_failing(gpu_memory):
    gpu_memory(GPU, 1)
    held = torch.ones(3)
    held_by.append(weakref.ref(held))
    assert False

def test_what_failed_holds_nothing(): assert held_by[0]() is None

def test_a_cpu(gpu_memory): gpu_memory(torch.device("cpu"), 10**15)

def test_all_was_freed(tmp_path_factory):
    assert len(freed) == 7
    with (tmp_path_factory.getbasetemp() / "gpu_memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

def test_one_at_a_time(gpu_memory, tmp_path_factory):
    gpu_memory(GPU, 1)
    with (tmp_path_factory.getbasetemp() / "gpu_memory.lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def test_memory_is_had_by_one_at_a_time_and_given_back(guarded) -> None:
    said = guarded(MEMORY)
    assert "needs 11 GiB of memory on the GPU, of which 10 are free" in said
    assert "1 failed, 5 passed, 1 skipped" in said


PLACES = """
import pytest, torch
from dataclasses import dataclass

@dataclass
class Target:
    device: torch.device

@pytest.mark.parametrize("place", [torch.device("cuda", 0), torch.device("cpu"), Target(torch.device("cuda")), "cuda", 3])
def test_places(place): pass

def test_elsewhere(): pass

@pytest.mark.gpu
def test_marked(): pass
"""


def test_what_runs_on_a_gpu_is_marked_by_its_parameters(guarded) -> None:
    said = guarded(PLACES, "-m", "gpu", "--collect-only")
    assert "3/7 tests collected" in said


LIMIT = """
import pytest

@pytest.mark.gpu
def test_plain(request): assert request.node.get_closest_marker("timeout").args == (300,)

@pytest.mark.gpu(seconds=900)
def test_long(request): assert request.node.get_closest_marker("timeout").args == (900,)

@pytest.mark.gpu
@pytest.mark.timeout(7)
def test_own(request): assert request.node.get_closest_marker("timeout").args == (7,)

def test_elsewhere(request): assert request.node.get_closest_marker("timeout") is None
"""


def test_a_limit_is_set_where_the_plugin_is(guarded, tmp_path: Path) -> None:
    (tmp_path / "timeout_plugin.py").write_text(
        "import sys\nfrom types import ModuleType\n\n"
        "def pytest_configure(config):\n"
        '    config.addinivalue_line("markers", "timeout: of a test")\n'
        '    config.pluginmanager.register(ModuleType("timeout"), "timeout")\n'
    )
    assert "4 passed" in guarded(LIMIT, plugins=("timeout_plugin",))


def test_no_limit_is_set_where_the_plugin_is_missing(guarded) -> None:
    said = guarded(LIMIT.replace("@pytest.mark.timeout(7)\n", ""))
    assert "1 passed" in said
    assert "3 failed" in said
    assert "'timeout' not found" not in said
