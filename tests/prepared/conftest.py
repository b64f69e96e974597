"""Every test of prepared calls starts without any."""

from __future__ import annotations

import pytest
import torch

from torch_unroll.engines import refusal
from torch_unroll.kernels import changes


@pytest.fixture(autouse=True)
def _nothing_prepared() -> None:
    if reason := refusal("cuda", "conv2d", torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    changes.note()
