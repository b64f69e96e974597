"""`override` inside those functions of torch that run user code: backward passes, checkpoints, hooks, torch.func and cond."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import torch_unroll as tu
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.testing import targets

TARGETS = targets("conv2d")
pytestmark = pytest.mark.skipif("cuda-emulated" not in map(str, TARGETS), reason="the emulated kernels are not built")


class Block(nn.Module):
    """A convolution, a pooling and a recurrence as modules: (N, 2, 4, 4) -> (N, 2, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(3, stride=1, padding=1)
        self.rnn = nn.RNN(16, 8, bidirectional=True, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rnn(self.pool(self.conv(x).tanh()).flatten(2))[0].view(x.shape)


def _nested(block: nn.Module, x: Tensor, use_reentrant: bool) -> Tensor:
    return checkpoint(lambda y: block(checkpoint(block, y, use_reentrant=use_reentrant)), x, use_reentrant=use_reentrant)


RECOMPUTATIONS: dict[str, Callable[[nn.Module, Tensor, bool], Tensor]] = {
    "checkpoint": lambda block, x, use_reentrant: checkpoint(block, x, use_reentrant=use_reentrant),
    "nested": _nested,
    "sequential": lambda block, x, use_reentrant: checkpoint_sequential([block] * 3, 2, x, use_reentrant=use_reentrant),
}


def _by_tensor(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    loss.backward()
    return [tensor.grad for tensor in inputs]


def _by_function(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.autograd.backward([loss, loss.detach().requires_grad_()])
    return [tensor.grad for tensor in inputs]


def _twice(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    return list(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs))


def _batched(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weightings = torch.tensor([1.0, -2.0], dtype=loss.dtype)
    return list(torch.autograd.grad(loss, inputs, weightings, is_grads_batched=True))


PASSES: dict[str, Callable[[Tensor, list[Tensor]], list[Tensor]]] = {
    "Tensor.backward": _by_tensor,
    "autograd.backward": _by_function,
    "autograd.grad": lambda loss, inputs: list(torch.autograd.grad(loss, inputs)),
    "create_graph": _twice,
    "is_grads_batched": _batched,
}


def _kernels(recorded: Any) -> dict[str, int]:
    """The number of launches of the forward pass of each op."""
    kernels = [plan.kernel.expression for _, plan in recorded.launches]
    return {
        op: sum(kernel.startswith(op) and "backward" not in kernel.lower() for kernel in kernels)
        for op in ("conv2d_fprop", "max_pool2d_forward", "rnn")
    }


def _torchs_calls(profiled: Any) -> list[str]:
    """The names of those convolutions, poolings and recurrences of torch that were called."""
    names = {event.key for event in profiled.key_averages()}
    return sorted(name for name in names if name.startswith(("aten::convolution", "aten::max_pool2d", "aten::rnn")))


@pytest.mark.parametrize(
    ("use_reentrant", "passing"),
    # For reentrant checkpoints, torch allows no other passes than these two.
    [(False, passing) for passing in PASSES] + [(True, "Tensor.backward"), (True, "autograd.backward")],
)
@pytest.mark.parametrize("recomputation", ["checkpoint", "nested", pytest.param("sequential", marks=pytest.mark.slow)])
def test_a_checkpoint_computes_again_with_our_ops(recomputation: str, use_reentrant: bool, passing: str) -> None:
    run, differentiate, block = RECOMPUTATIONS[recomputation], PASSES[passing], Block().double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]

    def loss() -> Tensor:
        return run(block, x, use_reentrant).square().sum()

    expected = differentiate(loss(), inputs)
    for engine in ("torch", "cuda"):
        for tensor in inputs:
            tensor.grad = None
        with tu.override(), tu.use_engine(engine):
            value = loss()
            with recording() as recorded, profile(activities=[ProfilerActivity.CPU]) as profiled:
                results = differentiate(value, inputs)
        torch.testing.assert_close(results, expected)
        assert _torchs_calls(profiled) == []
        if engine == "cuda":
            assert all(_kernels(recorded).values())


def _convolve(x: Tensor) -> Tensor:
    """A convolution in place of user code."""
    return F.conv2d(x, torch.full((2, 2, 3, 3), 0.1, dtype=x.dtype), padding=1)


class Own(torch.autograd.Function):
    """A user's Function that convolves in forward, backward, jvp and vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _convolve(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _convolve(dy)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return _convolve(dx)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return _convolve(x.movedim(in_dims[0], 0).flatten(0, 1)).unflatten(0, (info.batch_size, -1)), 0


class Wrapped(Tensor):
    """A subclass that inherits torch's `__torch_function__`."""


def _hook(x: Tensor) -> Any:
    y = x * 2
    y.register_hook(_convolve)
    return torch.autograd.grad(y.sum(), x)


def _hook_of_a_node(x: Tensor) -> Any:
    y = x.tanh()
    y.grad_fn.register_prehook(lambda gradients: (_convolve(gradients[0]),))
    return torch.autograd.grad(y.sum(), x)


def _hook_after_accumulation(x: Tensor) -> Any:
    leaf, results = x.detach().clone().requires_grad_(), []
    leaf.register_post_accumulate_grad_hook(lambda tensor: results.append(_convolve(tensor.grad)))
    (leaf * 2).sum().backward()
    return results


def _hook_on_unpacking(x: Tensor) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, _convolve):
        y = x * x
    return torch.autograd.grad(y.sum(), x)


def _callback(x: Tensor) -> Any:
    results, y = [], x * 2
    engine = torch.autograd.Variable._execution_engine
    y.register_hook(lambda _: engine.queue_callback(lambda: results.append(_convolve(x))))
    y.sum().backward(inputs=[x])
    return results


def _subclass(x: Tensor) -> Any:
    wrapped = x.detach().as_subclass(Wrapped).requires_grad_()
    y = wrapped * 2
    y.register_hook(_convolve)
    y.sum().backward()
    return wrapped.grad.as_subclass(Tensor)


RUNS_USER_CODE: dict[str, Callable[[Tensor], Any]] = {
    "a hook of a tensor": _hook,
    "a hook of a node": _hook_of_a_node,
    "a hook after accumulation": _hook_after_accumulation,
    "a hook on unpacking": _hook_on_unpacking,
    "a callback of the autograd engine": _callback,
    "a hook of a subclass": _subclass,
    "a Function": lambda x: torch.autograd.grad(Own.apply(x).sum(), x),
    "a Function in func.grad": torch.func.grad(lambda x: Own.apply(x).sum()),
    "a Function in func.vmap": lambda x: torch.func.vmap(Own.apply)(x.unsqueeze(0)),
    "a Function in func.jvp": lambda x: torch.func.jvp(Own.apply, (x,), (x,)),
    "func.jacrev": lambda x: torch.func.jacrev(Own.apply)(x),
    "a Function in autograd.functional.vjp": lambda x: torch.autograd.functional.vjp(Own.apply, x, x)[1],
    "cond": lambda x: torch.cond(x.sum() > 0, _convolve, _convolve, (x,)),
}


@pytest.mark.parametrize("runner", RUNS_USER_CODE)
def test_calls_made_by_torch_use_our_ops(runner: str) -> None:
    run = RUNS_USER_CODE[runner]
    torch._dynamo.reset()  # `cond` compiles
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = run(x)
    torch._dynamo.reset()
    with tu.override(), tu.use_engine("cuda"):
        run(x)  # compiles, before the calls are recorded
        with recording() as recorded, profile(activities=[ProfilerActivity.CPU]) as profiled:
            results = run(x)
    torch.testing.assert_close(results, expected)
    assert _kernels(recorded)["conv2d_fprop"]
    assert _torchs_calls(profiled) == []


class UsersError(Exception):
    """The error that a hook raises."""


def _fail(_: Any) -> Tensor:
    raise UsersError


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_modes_are_as_they_were_after_an_error_in_a_backward_pass(blocks: int) -> None:
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    modes = [tu.override() for _ in range(blocks)]
    seen: list[int] = []
    for mode in modes:
        mode.__enter__()
    for backward in (Tensor.backward, torch.autograd.backward, lambda loss: torch.autograd.grad(loss, x)):
        y = x * 2
        y.register_hook(lambda _: seen.append(len(_get_current_function_mode_stack())))
        y.register_hook(_fail)
        with pytest.raises(UsersError):
            backward(y.sum())
        assert _get_current_function_mode_stack() == modes
    for mode in reversed(modes):
        mode.__exit__(None, None, None)
    assert seen == [blocks] * 3
    assert _get_current_function_mode_stack() == []


def test_another_thread_is_left_alone() -> None:
    """Two threads run backward passes at the same time, and only one of them is inside the block."""
    barrier, seen = threading.Barrier(2), {}

    def work(name: str, block: Any) -> None:
        x = torch.randn(1, 2, 4, 4, requires_grad=True)
        with block:
            y = x * 2

            def hook(_: Tensor) -> None:
                barrier.wait(60)
                seen[name] = [type(mode) for mode in _get_current_function_mode_stack()]
                barrier.wait(60)

            y.register_hook(hook)
            y.sum().backward()

    threads = [threading.Thread(target=work, args=pair) for pair in (("within", tu.override()), ("without", nullcontext()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"within": [tu.override], "without": []}


def test_a_backward_pass_of_a_compiled_function() -> None:
    torch._dynamo.reset()
    block, x = Block(), torch.randn(2, 2, 4, 4, requires_grad=True)

    def gradients(model: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        y = model(x)
        y.register_hook(_convolve)
        return torch.autograd.grad(y.square().sum(), [x, *block.parameters()])

    expected = gradients(block)
    with torch._dynamo.config.patch(allow_rnn=True), tu.override(), tu.use_engine("torch"):
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        gradients(compiled)  # compiles, before the calls are recorded
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            results = gradients(compiled)
    torch.testing.assert_close(results, expected)
    assert _torchs_calls(profiled) == []
