"""Functions and modules on DTensors, sharded by samples or channels: results and gradients equal those of one process, and
results stay sharded."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import torch_unroll as tu

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)

H = 5
WEIGHTS = {"w_ih": (H, 3), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}
#: A function, the size and the sharded dimension of each tensor (None: replicated), and the sharded dimension of the result.
Call = tuple[Callable[..., Any], dict[str, tuple[tuple[int, ...], int | None]], int]


def _whole(sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], int | None]]:
    return {name: (size, None) for name, size in sizes.items()}


def _rnn(x: Tensor, h0: Tensor | None = None, *, lengths: Tensor | None = None, **weights: Tensor) -> Tensor:
    options: dict[str, Any] = {"bidirectional": len(weights) > 4, "batch_first": h0 is None and lengths is None}
    return tu.rnn(x, h0, list(weights.values()), lengths=lengths, engine="torch", **options)[0]


CALLS: dict[str, Call] = {
    "conv2d": (
        lambda x, w, b: tu.conv2d(x, w, b, padding=1, engine="torch"),
        {"x": ((4, 4, 6, 6), 0), **_whole({"w": (5, 4, 3, 3), "b": (5,)})},
        0,
    ),
    "conv2d, groups, strided": (
        lambda x, w: tu.conv2d(x, w, None, 2, groups=2, engine="torch"),
        {"x": ((4, 4, 7, 7), 0), "w": ((6, 2, 3, 3), None)},
        0,
    ),
    "conv_transpose2d": (
        lambda x, w, b: tu.conv_transpose2d(x, w, b, 2, engine="torch"),
        {"x": ((4, 4, 6, 6), 0), **_whole({"w": (4, 5, 3, 3), "b": (5,)})},
        0,
    ),
    "max_pool2d": (lambda x: tu.max_pool2d(x, 3, 2, 1, engine="torch"), {"x": ((4, 3, 7, 7), 0)}, 0),
    "max_pool2d, by channels": (lambda x: tu.max_pool2d(x, 2, engine="torch"), {"x": ((3, 4, 6, 6), 1)}, 1),
    "max_pool2d, indices": (lambda x: tu.max_pool2d(x, 2, return_indices=True, engine="torch")[0], {"x": ((4, 3, 6, 6), 0)}, 0),
    "unfold": (lambda x: tu.unfold(x, 2, engine="torch"), {"x": ((4, 3, 6, 6), 0)}, 0),
    "fold": (lambda x: tu.fold(x, (6, 6), 2, engine="torch"), {"x": ((4, 8, 25), 0)}, 0),
    "max_over_time": (lambda x: tu.max_over_time(x, engine="torch"), {"x": ((5, 4, 3), 1)}, 0),
    "rnn": (_rnn, {"x": ((6, 4, 3), 1), "h0": ((1, 4, H), 1), **_whole(WEIGHTS)}, 1),
    "rnn, batch first": (_rnn, {"x": ((4, 6, 3), 0), **_whole(WEIGHTS)}, 0),
    "rnn, bidirectional": (
        _rnn,
        {
            "x": ((6, 4, 3), 1),
            "h0": ((2, 4, H), 1),
            **_whole(WEIGHTS),
            **_whole({f"{name}_r": size for name, size in WEIGHTS.items()}),
        },
        1,
    ),
    "rnn_cell": (
        lambda x, h, **weights: tu.rnn_cell(x, h, *weights.values(), engine="torch"),
        {"x": ((4, 3), 0), "h": ((4, H), 0), **_whole(WEIGHTS)},
        0,
    ),
}


def _placed(rank: int, processes: int, store: str, work: Callable[[Any], None]) -> None:
    from torch.distributed.tensor import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    try:
        torch.manual_seed(0)
        work(init_device_mesh("cpu", (processes,)))
    finally:
        dist.destroy_process_group()


def _in_processes(processes: int, work: Callable[[Any], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = os.fspath(Path(folder) / "store")
        if processes == 1:
            _placed(0, 1, store, work)
        else:
            mp.spawn(_placed, (processes, store, work), processes)


def _functions(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for name, (function, tensors, samples) in CALLS.items():
        whole = {key: torch.randn(size).mul(0.5).requires_grad_() for key, (size, _) in tensors.items()}
        placements = {key: Replicate() if dim is None else Shard(dim) for key, (_, dim) in tensors.items()}
        cut = {key: distribute_tensor(value.detach(), mesh, [placements[key]]).requires_grad_() for key, value in whole.items()}
        expected, result = function(**whole), function(**cut)
        assert result.placements == (Shard(samples),), f"{name}: {result.placements}"
        _assert_close(result.full_tensor(), expected, name)
        gradients = torch.autograd.grad(expected.square().sum(), list(whole.values()))
        ours = torch.autograd.grad(result.square().sum(), list(cut.values()))
        for key, gradient, part in zip(whole, gradients, ours, strict=True):
            _assert_close(part.full_tensor(), gradient, f"{name}: {key}")


def _assert_close(result: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{what}: {text}")


def _remembered_answers(mesh: Any) -> None:
    """Calls that differ only in their numbers do not share an entry of DTensor's cache."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    x, w = torch.randn(4, 2, 9, 9), torch.randn(3, 2, 3, 3)
    cut, filter = distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(w, mesh, [Replicate()])
    for stride in (1, 2, 3):
        expected = tu.conv2d(x, w, None, stride, engine="torch")
        torch.testing.assert_close(tu.conv2d(cut, filter, None, stride, engine="torch").full_tensor(), expected)


def _model(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2), nn.RNN(9, H, batch_first=True)
    )
    tu.replace(model)
    distributed = distribute_module(copy.deepcopy(model), mesh)
    x = torch.randn(4, 3, 6, 6)
    model(x)[0].square().sum().backward()
    with tu.use_engine("torch"):
        output = distributed(distribute_tensor(x, mesh, [Shard(0)]))[0]
        _assert_close(output.full_tensor(), model(x)[0], "output")
        output.square().sum().backward()
    for (name, ours), expected in zip(distributed.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def _everything(mesh: Any) -> None:
    _functions(mesh)
    _remembered_answers(mesh)
    _model(mesh)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_as_one_process_without_parts(processes: int) -> None:
    _in_processes(processes, _everything)
