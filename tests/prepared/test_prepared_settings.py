"""Prepared calls follow every setting, and do without what torch may lack."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_unroll as tu
from tests.prepared.cases import (
    CASES,
    Case,
    assert_equal,
    every_case,
    gradients,
    no_prepared_launch,
    no_single_launch,
    prepare,
    states,
)
from torch_unroll import prepared
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import changes, planning
from torch_unroll.ops.registration import operations
from torch_unroll.prepared import shortcut, table, torch_internals


def _shortcuts() -> list[shortcut.Shortcuts]:
    """The shortcuts of all public functions."""
    modules = [importlib.import_module(f"torch_unroll.{name}") for name in ("conv2d", "max_pool2d", "rnn")]
    return [value for module in modules for value in vars(module).values() if isinstance(value, shortcut.Shortcuts)]


def test_use_engine_switches_between_equal_calls() -> None:
    x, w = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3)
    with tu.use_engine("cuda"):
        for _ in range(5):
            tu.conv2d(x, w)
    with tu.use_engine("cuda"), no_single_launch():
        tu.conv2d(x, w)
    for name in ("torch", "cuda", "torch"):
        with tu.use_engine(name), recording() as record:
            tu.conv2d(x, w)
        assert bool(record.launches) == (name == "cuda")


@pytest.mark.parametrize("grad", [False, True], ids=["without gradients", "with gradients"])
def test_use_engine_is_not_passed_over_by_a_shortcut(grad: bool) -> None:
    x, w = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3).requires_grad_(grad)
    with tu.use_engine("cuda"):
        for _ in range(5):
            tu.conv2d(x, w)
    with tu.use_engine("torch"), no_prepared_launch():
        tu.conv2d(x, w)
    with no_prepared_launch():
        tu.conv2d(x, w)


def test_force_and_workspace_between_equal_calls() -> None:
    x, w = torch.randn(2, 4, 6, 6).requires_grad_(), torch.randn(4, 4, 3, 3).requires_grad_()
    run = lambda: tu.conv2d(x, w, padding=1, engine="cuda")  # noqa: E731
    expected = F.conv2d(x, w, padding=1)
    of_result = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (x, w), of_result)
    functions = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
    for variant in ("simt", None, "im2col", None, "simt"):
        old = run()
        with planning.force("conv2d", variant):
            for _ in range(5):
                result = run()
                assert_equal(result, expected)
                assert_equal(torch.autograd.grad(result, (x, w), of_result), expected_gradients)
            assert_equal(torch.autograd.grad(old, (x, w), of_result), expected_gradients)
            plans = [
                plan.variant
                for entries in CASES[0].operation.table._entries.values()
                for entry in entries
                for plan in entry.prepared.plans
            ]
            assert plans
            assert variant is None or variant in plans
            with recording() as record:
                torch.autograd.grad(run(), (x, w), of_result)
            chosen = {name: record.selections[name].configuration.variant for name in functions if name in record.selections}
            assert variant is None or set(chosen.values()) == {variant}
        assert_equal(torch.autograd.grad(run(), (x, w), of_result), expected_gradients)
    for limit in (0, 1 << 20, 0):
        old = run()
        with tu.conv2d_workspace(limit):
            for _ in range(5):
                assert_equal(torch.autograd.grad(run(), (x, w), of_result), expected_gradients)
            assert_equal(torch.autograd.grad(old, (x, w), of_result), expected_gradients)


@every_case
def test_explain_and_recording_see_the_same_launches_as_before(case: Case) -> None:
    leaves = case.leaves()

    def launches() -> list[Any]:
        with recording() as record:
            gradients(case.run, leaves)
        return [plan for _, plan in record.launches]

    before = launches()
    assert before
    prepare(case)
    assert launches() == before
    assert "prepared" in states(case)


def test_explain_after_preparing() -> None:
    x, w = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 3, 3).requires_grad_()
    before = tu.explain("conv2d", x, w, engine="cuda").launches
    for _ in range(5):
        tu.conv2d(x, w, engine="cuda").sum().backward()
    assert tu.explain("conv2d", x, w, engine="cuda").launches == before


@pytest.mark.parametrize(
    "missing",
    [("_empty_strided_cpu",), ("_FunctionBase",), ("TensorGuards",), ("_empty_strided_cpu", "_FunctionBase", "TensorGuards")],
    ids="-".join,
)
def test_torch_without_private_functions(missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        """A module without the missing names."""

        def __init__(self, module: Any):
            self.module = module

        def __getattr__(self, name: str) -> Any:
            if name in missing:
                raise AttributeError(name)
            return getattr(self.module, name)

    monkeypatch.setattr(torch_internals, "_guards", Without(vars(torch_internals)["_guards"]))
    if "_FunctionBase" in missing:
        monkeypatch.setattr("torch_unroll.prepared.shortcut.torch_internals.applier", lambda function: function.apply)
    for case in CASES:
        for _ in range(5):
            leaves = case.leaves()
            assert_equal(gradients(case.run, leaves), gradients(case.expected, leaves))
        assert ("prepared" in states(case)) == ("TensorGuards" not in missing)


def test_torch_without_any_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_internals, "_guards", None)
    for case in CASES:
        for _ in range(4):
            leaves = case.leaves()
            assert_equal(gradients(case.run, leaves), gradients(case.expected, leaves))
        assert not states(case)


_PROGRAM = """
import torch, torch_unroll as tu
from torch_unroll.ops.registration import operations
x, w = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 3, 3)
for number in range(4):
    torch.testing.assert_close(tu.conv2d(x, w, engine="cuda"), torch.conv2d(x, w))
    entries = [entry for entries in operations["conv2d_fprop"].table._entries.values() for entry in entries]
    print(int(any(entry.describe() == "prepared" for entry in entries)), end="")
"""


@pytest.mark.parametrize(("text", "printed"), [("0", "0000"), ("1", "1111"), ("3", "0011")])
def test_the_environment_says_when_calls_are_prepared(text: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_UNROLL_PREPARE", text)
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr


@pytest.mark.parametrize("text", ["x"])
def test_the_environment_names_no_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_UNROLL_PREPARE", text)
    done = subprocess.run([sys.executable, "-c", "import torch_unroll"], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "ValueError: TORCH_UNROLL_PREPARE" in done.stderr
    assert repr(text) in done.stderr


def _sizes_of_globals() -> dict[str, int]:
    """How many items each list and dict of the package's modules has."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "torch_unroll"]
    return {
        f"{module.__name__}.{name}": len(value)
        for module in modules
        for name, value in list(vars(module).items())
        if isinstance(value, (dict, list, set)) and not name.startswith("__")
    }


def test_calls_of_ever_changing_shapes_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are lowered, so that few calls reach them; each call is prepared at once."""
    monkeypatch.setattr(prepared, "sights", 1)
    for module in (table, shortcut):
        monkeypatch.setattr(module, "MOST_KEYS", 20)
    package = str(Path(tu.__file__).parent)

    def work(start: int, count: int) -> None:
        for number in range(start, start + count):
            x, h = torch.randn(1, 1, 2, 2 + number), torch.randn(1 + number, 2)
            tu.max_pool2d(x, 2, engine="cuda")
            tu.rnn_cell(h, h.clone(), torch.randn(2, 2), torch.randn(2, 2), engine="cuda")

    work(0, 60)
    gc.collect()
    before = _sizes_of_globals()
    tracemalloc.start()
    first = tracemalloc.take_snapshot()
    work(60, 60)
    gc.collect()
    grown = tracemalloc.take_snapshot().compare_to(first, "filename")
    tracemalloc.stop()
    assert [len(case.operation.table._entries) for case in CASES[1:3]] == [20, 20]
    assert max(len(known._known) for known in _shortcuts()) == 20
    assert {name: size for name, size in _sizes_of_globals().items() if size > before.get(name, 0)} == {}
    ours = sum(difference.size_diff for difference in grown if difference.traceback[0].filename.startswith(package))
    assert ours < 1 << 20


def test_calls_of_2000_shapes_leave_the_tables_within_their_bounds() -> None:
    for number in range(2000):
        tu.max_pool2d(torch.randn(1, 1, 2, 2 + number), 2, engine="cuda")
    assert [len(case.operation.table._entries) for case in CASES[1:2]] == [table.MOST_KEYS]


@every_case
def test_what_prepared_calls_keep_is_freed_when_settings_change(case: Case) -> None:
    def classes() -> int:
        gc.collect()
        return sum(isinstance(thing, type) and issubclass(thing, torch.autograd.Function) for thing in gc.get_objects())

    prepare(case)
    before = classes()
    for _ in range(3):
        changes.note()
        prepare(case)
    assert classes() <= before


@pytest.mark.parametrize("kind", ["misaligned", "empty"])
def test_a_call_that_is_never_prepared_is_learned_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(65)[1:].view(1, 4, 4, 4) if kind == "misaligned" else torch.randn(0, 4, 4, 4)
    w = torch.randn(4, 4, 3, 3)
    for _ in range(5):
        tu.conv2d(torch.randn(1, 4, 4, 4), w, engine="cuda")
        tu.conv2d(x, w, engine="cuda")
    written = []
    write = vars(shortcut)["_write"]
    monkeypatch.setattr(shortcut, "_write", lambda *arguments: written.append(1) or write(*arguments))
    for _ in range(10):
        tu.conv2d(x, w, engine="cuda")
    assert len(written) <= 1


def test_results_count_for_no_limit_but_the_workspace_of_a_recording_does() -> None:
    """A recording keeps the workspace of all parts of a batch at once, which the limit is there to prevent."""
    x, w = torch.randn(8, 3, 8, 8).bfloat16(), torch.randn(8, 3, 3, 3).bfloat16()
    operation = operations["conv2d_fprop"]
    for limit, variant, outcome in ((0, "simt", "prepared"), (4096, "mma", "exceeds the limit"), (1 << 20, "mma", "prepared")):
        with tu.conv2d_workspace(limit), planning.force("conv2d", variant):
            for _ in range(5):
                y = tu.conv2d(x, w, engine="cuda")
            torch.testing.assert_close(y, F.conv2d(x, w), rtol=0.02, atol=0.1)
            (entry,) = [entry for entries in operation.table._entries.values() for entry in entries]
            assert outcome in entry.describe()
