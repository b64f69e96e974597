"""What keeps a test on a GPU from harming the others: a limit of time, and an end to the process that has lost the device.

After an error such as an illegal access every later call of the process fails. A worker of pytest-xdist then ends, and another
takes its place; a process without workers skips what is left for the GPU. pytest-timeout, where it is installed, ends what hangs.
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

#: Seconds of a test; the mark `gpu(seconds=...)` says otherwise. The first of a process may wait for a compiler.
SECONDS = 300

#: The test that lost the device.
_lost_in: str | None = None


def _is_on_gpu(value: Any) -> bool:
    """Whether a test's parameter is a place on a GPU: a device, or what has one."""
    place = getattr(value, "device", value)
    return isinstance(place, torch.device) and place.type == "cuda"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what runs on a GPU, skips it where there is none, visibly, and limits its time."""
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
            # What hangs in the driver hears no signal: a thread ends the process.
            item.add_marker(pytest.mark.timeout(gpu.kwargs.get("seconds", SECONDS), method="thread"))


@pytest.fixture(autouse=True)
def _device_is_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """An error of the device belongs to the test that launched what caused it, however late it shows."""
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
    """Asks for so many bytes on a device, of which a GPU may not have enough: the test is then skipped. One test of all workers
    has such memory at a time, and what it took is given back when it ends."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "gpu_memory.lock").open("w") as lock:

        def ask(device: torch.device, wanted: int) -> None:
            if device.type != "cuda":  # pages that are not touched cost nothing
                return
            fcntl.flock(lock, fcntl.LOCK_EX)
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            if free < wanted:
                pytest.skip(f"needs {wanted / 2**30:.0f} GiB of memory on the GPU, of which {free / 2**30:.0f} are free")

        try:
            yield ask
        finally:
            for name in ("last_type", "last_value", "last_traceback", "last_exc"):  # a test that failed, with what it had
                vars(sys).pop(name, None)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    """Ends a worker that has lost the device, once the test is reported; what it had before it goes to another."""
    if _lost_in == nodeid and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
