"""The results and gradients of prepared calls are torch's, whatever tensors they get."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
from tests.prepared.cases import (
    CASES,
    NETWORKS,
    Case,
    assert_equal,
    copies,
    every_case,
    expanded,
    gradients,
    misaligned,
    no_single_launch,
    prepare,
    states,
    transposed,
)
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import changes


@pytest.mark.parametrize("case", CASES + NETWORKS, ids=str)
def test_every_call_of_a_kind_has_torchs_results_and_gradients(case: Case) -> None:
    for _ in range(5):
        leaves = case.leaves()
        assert_equal(case.run(*leaves), case.expected(*leaves))
        assert_equal(gradients(case.run, leaves), gradients(case.expected, leaves))
    assert "prepared" in states(case)


@pytest.mark.parametrize("case", CASES + NETWORKS, ids=str)
def test_a_prepared_call_launches_all_its_kernels_at_once(case: Case) -> None:
    with no_single_launch(), pytest.raises(AssertionError, match="not part of a prepared call"):
        case.run(*case.tensors())
    prepare(case)
    with no_single_launch():
        leaves = case.leaves()
        assert_equal(case.run(*leaves), case.expected(*leaves))
        plain = case.run(*[leaf.detach() for leaf in leaves])
        results = gradients(case.run, leaves) if case.backward_is_prepared else None
    if results is not None:
        assert_equal(results, gradients(case.expected, leaves))
    assert_equal(plain, case.expected(*leaves).detach())


@every_case
def test_any_set_of_gradients_may_be_wanted(case: Case) -> None:
    leaves = case.leaves()
    numbers = range(len(leaves))
    wanted = [chosen for count in (1, 2, len(leaves)) for chosen in combinations(numbers, count)]
    expected = gradients(case.expected, leaves)
    for chosen in wanted[::-1] + wanted:
        others = copies(leaves)
        result = case.run(*others)
        of_result = torch.cos(torch.arange(result.numel(), dtype=result.dtype)).view_as(result)
        results = torch.autograd.grad(result, [others[number] for number in chosen], of_result)
        assert_equal(list(results), [expected[number] for number in chosen])


@every_case
@pytest.mark.parametrize("count", [1, 2])
def test_only_some_tensors_may_require_a_gradient(case: Case, count: int) -> None:
    for chosen in list(combinations(range(len(case.sizes)), min(count, len(case.sizes)))) * 4:
        tensors = [tensor.requires_grad_(number in chosen) for number, tensor in enumerate(case.tensors())]
        assert_equal(gradients(case.run, tensors), gradients(case.expected, tensors))


@every_case
@pytest.mark.parametrize("change", [misaligned, transposed, expanded, torch._neg_view], ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["first", "later"])
def test_tensors_of_another_layout(case: Case, change: Callable[[Tensor], Tensor], when: str) -> None:
    if when == "later":
        prepare(case)
    for number in list(range(len(case.sizes))) * 2:
        tensors = case.tensors()
        tensors[number] = change(tensors[number])
        assert_equal(case.run(*tensors), case.expected(*tensors))
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        assert_equal(gradients(case.run, leaves), gradients(case.expected, leaves))
    prepare(case)


@every_case
@pytest.mark.parametrize("change", [misaligned, transposed, expanded, torch._neg_view], ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["first", "later"])
def test_gradients_of_another_layout(case: Case, change: Callable[[Tensor], Tensor], when: str) -> None:
    if when == "later":
        prepare(case)
    for _ in range(4):
        leaves = case.leaves()
        of_result = change(torch.randn_like(case.run(*leaves)))
        assert_equal(gradients(case.run, leaves, of_result), gradients(case.expected, leaves, of_result))


def test_overlapping_tensors() -> None:
    memory = torch.randn(200)
    x, w = memory[:64].view(1, 4, 4, 4), memory[16:160].view(4, 4, 3, 3)
    for _ in range(5):
        assert_equal(tu.conv2d(x, w, padding=1, engine="cuda"), torch.conv2d(x, w, padding=1))
    apart = w.clone()
    for _ in range(5):
        tu.conv2d(x, apart, padding=1, engine="cuda")
    assert_equal(tu.conv2d(x, w, padding=1, engine="cuda"), torch.conv2d(x, w, padding=1))


def test_one_tensor_twice() -> None:
    square = torch.randn(4, 4, 3, 3).requires_grad_()
    weights = [torch.randn(8, 8).requires_grad_(), torch.randn(8).requires_grad_()]
    for other in [square, square.detach().clone().requires_grad_()] * 4:
        run = lambda x, w: tu.conv2d(x, w, engine="cuda")  # noqa: E731
        expected = torch.autograd.grad(torch.conv2d(square, other).sum(), square)
        assert_equal(torch.autograd.grad(run(square, other).sum(), square), expected)
    x, h = torch.randn(4, 8), torch.randn(4, 8)
    for _ in range(4):
        tied = (x, h, weights[0], weights[0], weights[1], weights[1])
        expected = torch.autograd.grad(torch.rnn_tanh_cell(*tied).sum(), weights)
        assert_equal(torch.autograd.grad(tu.rnn_cell(*tied, engine="cuda").sum(), weights), expected)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)], ids=str)
def test_another_dtype_of_the_same_shapes(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    prepare(case)
    for _ in range(4):
        tensors = case.tensors(dtype)
        result = case.run(*tensors)
        assert result.dtype == dtype
        assert_equal(result, case.expected(*tensors), tolerance)


@every_case
def test_threads(case: Case) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for repeat in range(8):
            tensors = [torch.randn(size, generator=generator) for size in case.sizes]
            if seed % 2 and case.name in ("conv2d", "max_pool2d"):
                tensors[0] = torch.cat([tensors[0]] * (1 + repeat % 3))
            leaves = [tensor.requires_grad_() for tensor in tensors]
            try:
                assert_equal(gradients(case.run, leaves), gradients(case.expected, leaves))
            except Exception as error:
                wrong.append(f"{seed}, {repeat}: {error}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("name", "forward", "all_gradients"), [("conv2d", 1, 5), ("max_pool2d", 1, 1), ("rnn_cell", 1, 4), ("rnn", 2, 5)]
)
def test_launches_are_few(name: str, forward: int, all_gradients: int) -> None:
    (case,) = [case for case in CASES if case.name == name]
    leaves = [
        leaf.to(memory_format=torch.channels_last).detach().requires_grad_() if leaf.dim() == 4 else leaf
        for leaf in case.leaves()
    ]
    with recording() as record:
        result = case.run(*leaves)
        forward_launches = len(record.launches)
        torch.autograd.grad(result, leaves, torch.randn_like(result))
    backward_launches = len(record.launches) - forward_launches
    for _ in range(3):
        case.run(*[leaf.detach() for leaf in leaves])
    (plans,) = [
        entry.prepared.plans
        for entries in case.operation.table._entries.values()
        for entry in entries
        if entry.prepared is not None
    ]
    assert len(plans) == forward_launches <= forward
    assert backward_launches + (forward_launches if name == "conv2d" else 0) <= all_gradients


@every_case
def test_accumulated_gradients_share_no_memory(case: Case) -> None:
    """Each leaf's `grad` is its own, so that a caller may change one in place."""
    for _ in range(5):
        leaves = case.leaves()
        results = case.run(*leaves)
        for result in (results,) if isinstance(results, torch.Tensor) else results:
            result.sum().backward(retain_graph=True)
        addresses = [leaf.grad.data_ptr() for leaf in leaves if leaf.grad is not None]
        assert len(set(addresses)) == len(addresses) > 0


@every_case
def test_an_old_graph_outlives_a_change_of_settings(case: Case) -> None:
    leaves = case.leaves()
    expected = gradients(case.expected, leaves)
    for _ in range(4):
        result = case.run(*leaves)
        of_result = torch.cos(torch.arange(result.numel(), dtype=result.dtype)).view_as(result)
        assert_equal(list(torch.autograd.grad(result, leaves, of_result, retain_graph=True)), expected)
        changes.note()
        assert_equal(list(torch.autograd.grad(result, leaves, of_result, retain_graph=True)), expected)
        for _ in range(4):
            case.run(*leaves)
        assert_equal(list(torch.autograd.grad(result, leaves, of_result)), expected)
