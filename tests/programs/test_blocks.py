"""`use_engine`, `override` and `conv2d_workspace` as blocks and decorators.

Of the open blocks of `use_engine` or of `conv2d_workspace`, the one that was entered last determines the setting. Once all have
ended, in any order and on any threads, the setting is as before.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.engines import resolve
from torch_unroll.engines.compiled.conv2d_workspace import set_workspace_limit, workspace_limit
from torch_unroll.engines.compiled.recording import note_launch, recording
from torch_unroll.kernels.table import Kernel, LaunchConfig, LaunchPlan
from torch_unroll.settings import Setting

NAMES = ("cuda", "cupy", "numba", "torch")
LIMITS = (0, 1 << 10, 1 << 20, 1 << 30)


def limit() -> int:
    return workspace_limit()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before, engine = limit(), resolve(None)
    yield
    left, left_engine = limit(), resolve(None)
    set_workspace_limit(before)
    assert (left, left_engine) == (before, engine)


def new_blocks() -> list[tuple[Any, Callable[[], Any], Any]]:
    """Objects of both settings, each with a function that returns the current setting, and the value that the object sets."""
    engines = [(tu.use_engine(name), lambda: resolve(None), name) for name in NAMES]
    return [*engines, *((tu.conv2d_workspace(value), limit, value) for value in LIMITS)]


#: Steps (thread, index of an object, True if the thread enters the object, False if it leaves it). The test skips a step that
#: leaves an object without an open block.
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.booleans()), max_size=24)


@given(STEPS)
def test_any_interleaving(steps: list[tuple[int, int, bool]]) -> None:
    start = (resolve(None), limit())
    blocks = new_blocks()
    assert limit() == LIMITS[-1]
    for block, _, _ in blocks[len(NAMES) :]:
        with block:  # from now on, the value that the constructor set holds only inside blocks
            pass
    reads = (lambda: resolve(None), limit)
    assert (reads[0](), reads[1]()) == start
    open_blocks: list[list[tuple[int, int]]] = [
        [],
        [],
    ]  # for each setting, the (thread, index of the object) of each open block, in the order of entering

    def leave(thread: int, index: int) -> None:
        kind = open_blocks[index // 4]
        here = [entry for entry in kind if entry == (thread, index)] or [entry for entry in kind if entry[1] == index]
        pools[thread].submit(blocks[index][0].__exit__, None, None, None).result()
        kind.reverse()
        kind.remove(here[-1])
        kind.reverse()

    pools = [ThreadPoolExecutor(1) for _ in range(3)]
    try:
        for thread, index, enters in steps:
            if enters:
                pools[thread].submit(blocks[index][0].__enter__).result()
                open_blocks[index // 4].append((thread, index))
            elif any(entry[1] == index for entry in open_blocks[index // 4]):
                leave(thread, index)
            for kind in (0, 1):
                expected = blocks[open_blocks[kind][-1][1]][2] if open_blocks[kind] else start[kind]
                assert reads[kind]() == expected
        for kind in (0, 1):
            for thread, index in list(open_blocks[kind]):  # blocks end in the order in which they were entered
                leave(thread, index)
        assert (reads[0](), reads[1]()) == start
    finally:
        for pool in pools:
            pool.shutdown()


def test_blocks_of_two_threads_that_race() -> None:
    before = (resolve(None), limit())
    shared = tu.use_engine("numba")

    def work(number: int) -> None:
        for _ in range(300):
            with shared, tu.use_engine(NAMES[number]), tu.conv2d_workspace(number):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (resolve(None), limit()) == before


BLOCKS: dict[str, Callable[[], Any]] = {
    "use_engine": lambda: tu.use_engine("torch"),
    "override": tu.override,
    "conv2d_workspace": lambda: tu.conv2d_workspace(0),
}


def _state() -> tuple[str, int, int]:
    return resolve(None), limit(), torch._C._len_torch_function_stack()


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
class TestEveryKind:
    def test_an_object_is_entered_within_itself_and_again(self, make: Any) -> None:
        before, block = _state(), make()
        for _ in range(2):
            with block:
                inside = _state()
                assert inside != before
                with block, block:
                    pass
                assert _state() == inside
            assert _state() == before

    def test_an_exception_ends_it(self, make: Any) -> None:
        before, block = _state(), make()
        for _ in range(2):
            with pytest.raises(KeyError), block, block:
                raise KeyError
            assert _state() == before

    def test_a_generator_leaves_late(self, make: Any) -> None:
        def entering() -> Iterator[None]:
            with make():
                yield

        before, first, second = _state(), entering(), entering()
        next(first)
        inside = _state()
        next(second)
        first.close()
        assert _state() == inside
        del second
        gc.collect()
        assert _state() == before

    def test_as_a_decorator(self, make: Any) -> None:
        before = _state()

        @make()
        def function() -> tuple[str, int, int]:
            """The setting inside the block."""
            return _state()

        @make()
        def nested() -> tuple[str, int, int]:
            function()
            return _state()

        @make()
        def generator() -> Iterator[tuple[str, int, int]]:
            yield _state()
            yield _state()

        assert _state() == before
        inside = function()
        assert inside != before
        assert function.__doc__ == "The setting inside the block."
        assert nested() == inside
        for seen in generator():
            assert seen == inside
            assert _state() == before
        assert _state() == before

    def test_no_class_is_decorated(self, make: Any) -> None:
        with pytest.raises(RuntimeError, match="Cannot decorate classes"):
            make()(nn.Module)


@pytest.mark.parametrize("name", ["use_engine", "conv2d_workspace"])
def test_a_block_that_was_not_entered_cannot_be_left(name: str) -> None:
    before, block = _state(), BLOCKS[name]()
    if name == "conv2d_workspace":
        with block:
            pass
    with pytest.raises(RuntimeError, match=f"{name}: expected a block to be entered before it is left"):
        block.__exit__(None, None, None)
    assert _state() == before


class TestLimits:
    """`conv2d_workspace` sets the limit permanently unless the object is entered as a block."""

    @pytest.fixture(autouse=True)
    def _restored(self) -> Iterator[None]:
        before = limit()
        yield
        set_workspace_limit(before)

    def test_two_threads_construct_before_either_enters(self) -> None:
        before = limit()
        first, second = tu.conv2d_workspace(1), tu.conv2d_workspace(2)
        first.__enter__()
        assert limit() == 1
        second.__enter__()
        first.__exit__(None, None, None)
        assert limit() == 2
        second.__exit__(None, None, None)
        assert limit() == before

    def test_a_statement_outlives_blocks(self) -> None:
        with tu.conv2d_workspace(1):
            tu.conv2d_workspace(2)
            assert limit() == 2
            with tu.conv2d_workspace(3):
                assert limit() == 3
            assert limit() == 2
        assert limit() == 2

    def test_the_last_statement_holds(self) -> None:
        kept = [tu.conv2d_workspace(value) for value in (1, 2)]
        for value in range(3, 9):
            tu.conv2d_workspace(value)
        with kept[1]:
            assert limit() == 2
        assert limit() == 8

    def test_statements_do_not_pile_up(self) -> None:
        value = 5
        setting = Setting(lambda: value, lambda new: None)

        class Owner:
            pass

        for _ in range(100):
            setting.set(Owner(), value)
        assert len(setting._entries) <= 2

    def test_a_value_written_by_other_code_holds(self) -> None:
        tu.conv2d_workspace(7)
        set_workspace_limit(11)
        with tu.conv2d_workspace(1):
            pass
        assert limit() == 11


def test_recordings_of_two_threads_are_whole() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    first, second = recording(), recording()
    outer, inner = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    note_launch("cuda", LaunchPlan(Kernel("a.cuh", "a_kernel"), LaunchConfig((1, 1, 1), (1, 1, 1)), "a"))
    assert outer.launches == inner.launches == []
    assert outer is not inner
    if tu.available_engines("cpu").reasons["cuda"] is None:
        with recording() as outer, recording() as inner:
            tu.conv2d(x, w, engine="cuda")
        assert outer.launches == inner.launches != []


class TestCompiled:
    """Blocks inside a function that torch.compile traces."""

    @staticmethod
    def _engines(function: Callable[..., Tensor], fullgraph: bool = True) -> list[str]:
        """The engines with which the convolutions of a compiled function were traced, in order."""
        torch._dynamo.reset()
        backend = torch._dynamo.testing.EagerAndRecordGraphs()
        x, w = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 2, 2)
        compiled = torch.compile(function, backend=backend, fullgraph=fullgraph)
        torch.testing.assert_close(compiled(x, w), torch.conv2d(x, w))
        calls = [node for graph in backend.graphs for node in graph.graph.nodes if "conv2d_fprop" in str(node.target)]
        return [next(value for value in reversed(node.args) if isinstance(value, str)) for node in calls]

    def test_new_objects(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            with tu.use_engine("cuda"):
                with tu.use_engine("torch"):
                    tu.conv2d(x, w)
                return tu.conv2d(x, w)

        assert self._engines(function) == ["torch", "cuda"]

    def test_an_object_from_outside_within_itself(self) -> None:
        block, seen = tu.use_engine("torch"), []

        def function(x: Tensor, w: Tensor) -> Tensor:
            with block:
                with block:
                    seen.append(resolve(None))
                with tu.use_engine("cuda"):
                    seen.append(resolve(None))
                seen.append(resolve(None))
            seen.append(resolve(None))
            return tu.conv2d(x, w)

        with block, tu.use_engine("numba"), tu.use_engine("torch"):
            self._engines(function, fullgraph=False)
        assert seen == ["torch", "cuda", "torch", "torch"]

    def test_decorated(self) -> None:
        @tu.use_engine("torch")
        def function(x: Tensor, w: Tensor) -> Tensor:
            return tu.conv2d(x, w)

        @tu.override()
        def overridden(x: Tensor, w: Tensor) -> Tensor:
            return torch.conv2d(x, w)

        with tu.use_engine("cuda"):
            assert self._engines(function) == ["torch"]
            assert self._engines(overridden) == ["cuda"]

    def test_a_broken_graph(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            with tu.use_engine("torch"):
                y = tu.conv2d(x, w)
                torch._dynamo.graph_break()
                seen.append(resolve(None))
            return y + 0 * tu.conv2d(x, w)

        seen: list[str] = []
        with tu.use_engine("cuda"):
            assert self._engines(function, fullgraph=False) == ["torch", "cuda"]
        assert seen == ["torch"]

    def test_blocks_around_it_are_guarded(self) -> None:
        engines = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            engines.extend(value for node in graph.graph.nodes for value in node.args if value in NAMES)
            return graph

        torch._dynamo.reset()
        x, w = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 2, 2)
        compiled = torch.compile(lambda x, w: tu.conv2d(x, w), backend=backend, fullgraph=True)
        for name in ("torch", "cuda", "torch", "cuda"):
            with tu.use_engine(name):
                compiled(x, w)
        assert engines == ["torch", "cuda"]
