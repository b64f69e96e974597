"""The calls whose host time is measured: ours and torch's, on the same tensors.

The tensors are so small that torch's own operators, whose kernels run on the CPU, spend their time in host code too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from benchmarks.names import DTYPES

#: A direction, and what is timed.
DIRECTIONS = {
    "fprop": "forward, without gradients",
    "dx": "forward, and backward to the input alone",
    "train": "forward, and backward to the input and all weights",
}


@dataclass(frozen=True)
class Subject:
    """A call, ours and torch's."""

    ours: Callable[[], Any]
    torchs: Callable[[], Any]
    inputs: tuple[Tensor, ...]  # all that require a gradient, x first
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered for our calls, outside of what is timed


@dataclass(frozen=True)
class Row:
    """A call to measure in one direction."""

    name: str
    direction: str
    build: Callable[[torch.device], Subject]
    at_most: float | None  # what the ratio of our time to torch's is meant not to exceed; None: nothing is promised
    compiled: bool = False


def _tensors(device: torch.device, dtype: torch.dtype, *sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(size, device=device).to(dtype).requires_grad_() for size in sizes)


def _conv2d(dtype: str, layout: str, device: torch.device) -> Subject:
    x, w, b = _tensors(device, DTYPES[dtype], (1, 16, 4, 4), (16, 16, 3, 3), (16,))
    if layout == "channels_last":
        x, w = (tensor.detach().to(memory_format=torch.channels_last).requires_grad_() for tensor in (x, w))
    return Subject(lambda: tu.conv2d(x, w, b, padding=1, engine="cuda"), lambda: F.conv2d(x, w, b, padding=1), inputs=(x, w, b))


def _compiled_conv2d(backend: str, device: torch.device) -> Subject:
    compiled = partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    ours = compiled(lambda x, w, b: tu.conv2d(x, w, b, padding=1, engine="cuda"))
    torchs = compiled(lambda x, w, b: F.conv2d(x, w, b, padding=1))
    x, w, b = _tensors(device, torch.float32, (1, 16, 4, 4), (16, 16, 3, 3), (16,))
    return Subject(lambda: ours(x, w, b), lambda: torchs(x, w, b), inputs=(x, w, b))


def _max_pool2d(device: torch.device) -> Subject:
    (x,) = _tensors(device, torch.float32, (1, 8, 4, 4))
    return Subject(lambda: tu.max_pool2d(x, 2, engine="cuda"), lambda: F.max_pool2d(x, 2), inputs=(x,))


def _rnn_cell(device: torch.device) -> Subject:
    inputs = _tensors(device, torch.float32, (2, 8), (2, 8), (8, 8), (8, 8), (8,), (8,))
    return Subject(lambda: tu.rnn_cell(*inputs, engine="cuda"), lambda: torch.rnn_tanh_cell(*inputs), inputs)


def _modules(ours: torch.nn.Module, torchs: torch.nn.Module, x: Tensor, device: torch.device) -> Subject:
    torchs.to(device)
    for name, parameter in torchs.named_parameters():
        setattr(ours, name, parameter)
    return Subject(lambda: ours(x), lambda: torchs(x), inputs=(x, *torchs.parameters()))


def _rnn(layers: int, bidirectional: bool, device: torch.device) -> Subject:
    (x,) = _tensors(device, torch.float32, (1, 2, 8))
    torchs = torch.nn.RNN(8, 8, layers, bidirectional=bidirectional)
    return _modules(tu.nn.RNN(8, 8, layers, bidirectional=bidirectional, engine="cuda"), torchs, x, device)


def _conv2d_module(device: torch.device) -> Subject:
    (x,) = _tensors(device, torch.float32, (1, 16, 4, 4))
    return _modules(tu.nn.Conv2d(16, 16, 3, padding=1, engine="cuda"), torch.nn.Conv2d(16, 16, 3, padding=1), x, device)


@contextmanager
def _overridden() -> Iterator[None]:
    with tu.use_engine("cuda"), tu.override():
        yield


def _overridden_conv2d(device: torch.device) -> Subject:
    (x,) = _tensors(device, torch.float32, (1, 16, 4, 4))
    module = torch.nn.Conv2d(16, 16, 3, padding=1).to(device)
    return Subject(lambda: module(x), lambda: module(x), inputs=(x, *module.parameters()), around=_overridden)


def _rows() -> Iterator[Row]:
    subjects: list[tuple[str, str, Callable[[torch.device], Subject], dict[str, float | None]]] = [
        ("conv2d", "fp32/nchw", partial(_conv2d, "fp32", "nchw"), {"fprop": 0.4, "train": 0.7}),
        ("conv2d", "bf16/nchw", partial(_conv2d, "bf16", "nchw"), {"fprop": 0.15, "train": 0.25}),
        ("conv2d", "bf16/channels_last", partial(_conv2d, "bf16", "channels_last"), {"fprop": 0.15, "train": 0.25}),
        ("nn.Conv2d", "module", _conv2d_module, {"fprop": None, "train": None}),
        ("nn.Conv2d", "override", _overridden_conv2d, {"fprop": None, "train": None}),
        ("max_pool2d", "fp32/nchw", _max_pool2d, {"fprop": 1.1, "train": 1.5}),
        ("rnn_cell", "fp32", _rnn_cell, {"fprop": 0.5, "dx": 0.6, "train": 0.6}),
        ("nn.RNN", "layers=1", partial(_rnn, 1, False), {"fprop": 0.3, "dx": 0.5, "train": 0.5}),
        ("nn.RNN", "layers=2", partial(_rnn, 2, False), {"fprop": 0.4, "dx": 0.5, "train": 0.5}),
        ("nn.RNN", "layers=2,directions=2", partial(_rnn, 2, True), {"fprop": 0.4, "dx": 0.5, "train": 0.5}),
    ]
    for op, what, build, limits in subjects:
        for direction, at_most in limits.items():
            yield Row(f"{op}/{direction}/{what}", direction, build, at_most)
    for backend in ("aot_eager", "inductor"):
        for direction in ("fprop", "train"):
            yield Row(f"conv2d/{direction}/{backend}", direction, partial(_compiled_conv2d, backend), 1.5, compiled=True)


ROWS = tuple(_rows())


def select(pattern: re.Pattern[str] | None, compiled: bool) -> list[Row]:
    """The rows whose names the pattern matches anywhere, those of compiled graphs only with `compiled`.

    Raises:
        ValueError: there are none.
    """
    matching = [row for row in ROWS if pattern is None or pattern.search(row.name)]
    selected = [row for row in matching if compiled or not row.compiled]
    if not selected and matching:
        raise ValueError(f"{', '.join(row.name for row in matching)}: compiled graphs are measured with --compiled only")
    if not selected:
        text = pattern.pattern if pattern else ""
        raise ValueError(f"--only {text!r}: no row has a matching name; --list shows the names")
    return selected
