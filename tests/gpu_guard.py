"""A pytest plugin that keeps a failing test on a GPU from affecting others, by time limits and by ending processes.

After an error such as an illegal access, every later CUDA call of the process fails. A worker of pytest-xdist then exits and is
replaced; a process without workers skips its remaining tests on the GPU. pytest-timeout, if installed, ends tests that hang.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

#: The time limit of a test in seconds, unless the mark `gpu(seconds=...)` sets another. It is long because the first test may
#: wait for a compiler.
SECONDS = 300

#: The test in which this process lost the device.
_lost_in: str | None = None


def _is_on_gpu(value: Any) -> bool:
    """Whether a test's parameter is a CUDA device or has one as its `device`."""
    device = getattr(value, "device", value)
    return isinstance(device, torch.device) and device.type == "cuda"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests that run on a GPU, limits their time, and skips them if there is no GPU."""
    limits = config.pluginmanager.hasplugin("timeout")
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if not item.get_closest_marker("gpu") and any(map(_is_on_gpu, parameters)):
            item.add_marker(pytest.mark.gpu)
        if not (gpu := item.get_closest_marker("gpu")):
            continue
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif limits and not item.get_closest_marker("timeout"):
            # A process that hangs in the driver does not handle signals; a thread can end it.
            item.add_marker(pytest.mark.timeout(gpu.kwargs.get("seconds", SECONDS), method="thread"))


@pytest.fixture(autouse=True)
def _device_is_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Waits for the device at the end of each test, so that an error is reported for the test that caused it."""
    global _lost_in
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    if _lost_in:
        pytest.skip(f"{_lost_in} has left the GPU unusable by this process")
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        _lost_in = request.node.nodeid
        raise


@pytest.fixture
def gpu_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[torch.device, int], None]]:
    """A function that skips the test if a GPU has less free memory than the test wants, in bytes.

    Only one test at a time, among all workers, goes on to use that memory, which is freed when the test ends.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "gpu_memory.lock").open("w") as lock:

        def ask(device: torch.device, wanted: int) -> None:
            if device.type != "cuda":  # on the CPU, pages take memory only when they are written
                return
            fcntl.flock(lock, fcntl.LOCK_EX)
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            if free < wanted:
                pytest.skip(f"needs {wanted / 2**30:.0f} GiB of memory on the GPU, of which {free / 2**30:.0f} are free")

        try:
            yield ask
        finally:
            for name in ("last_type", "last_value", "last_traceback", "last_exc"):  # these keep a failed test's tensors alive
                vars(sys).pop(name, None)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    """Ends the worker once the test in which it lost the device is reported; a new worker runs the remaining tests."""
    if _lost_in == nodeid and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
