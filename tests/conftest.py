"""Settings and fixtures of all tests: one thread for each process, and reproducible random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests import gpu_guard
from torch_unroll.engines import refusal
from torch_unroll.training.digits import Digits, load

torch.set_num_threads(1)
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device on which engine `cuda` runs: the CPU, through the emulator, and the GPU if there is one.

    New tensors are created there. The test is skipped if the engine cannot run there.
    """
    place = torch.device(request.param)
    if reason := refusal("cuda", "conv2d", place, torch.float32):
        pytest.skip(reason)
    with place, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield place


@pytest.fixture(scope="session")
def digits() -> Digits:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install scikit-learn")
    return load()


@pytest.fixture
def switches_may_be_set() -> Iterator[None]:
    """Allows the benchmark runner to set torch's backend flags during a test.

    torch's test utilities, which other tests in the process import, forbid it.
    """
    with torch.backends.__allow_nonbracketed_mutation():
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(gpu_guard)
