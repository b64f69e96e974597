"""A whole recurrent network of one direction as one autograd Function, with all its gradients.

It serves plain calls without packing, lengths or dropout. Each layer is a product and a recurrence, as in `rnn_stack`, but no
operator of torch runs between them: the product adds both biases, the recurrence starts from no h0 as from zeros, and it writes
h_n and takes its gradient. Gradients of gradients are those of `rnn_stack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torch_unroll import prepared
from torch_unroll.engines import limits, resolve_precision, select, switched_precision
from torch_unroll.engines.interface import Conv2dGeometry, Engine, RnnOptions
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.ops.linear import as_filters, as_image
from torch_unroll.ops.rnn_stack import Stack
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.plain import is_plain
from torch_unroll.prepared.table import Table, Tensors, serve

_POINTWISE = Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
#: The geometry in which an output of a step is the input of the step before: time is the vertical axis, and above it lies 0.
_PREVIOUS = Conv2dGeometry((1, 1), (1, -1, 0, 0), (1, 1), 1)


class Numbers(NamedTuple):
    """The arguments of a network besides its tensors, which are x, h0 and the weights of every layer in torch's order."""

    num_layers: int
    batch_first: bool
    nonlinearity: str
    engine: str


class _Network:
    """The layers of one call, on the engine that serves it."""

    def __init__(self, x: Tensor, weights: Sequence[Tensor], numbers: Numbers):
        self.engine: Engine = select(numbers.engine, "rnn", x.device, x.dtype)
        self.precision = resolve_precision("rnn", x)
        self.options = RnnOptions(None, None, numbers.nonlinearity, self.precision)
        count = len(weights) // numbers.num_layers
        self.layers = [weights[i : i + count] for i in range(0, len(weights), count)]
        self.batch_first = numbers.batch_first
        steps, samples = x.shape[:2]
        for _, w_hh, *_ in self.layers:
            limits.require(numbers.engine, limits.rnn((steps, samples), w_hh.shape[0], samples, w_hh.shape[0]))

    def forward(self, x: Tensor, h0: Tensor | None) -> tuple[Tensor, ...]:
        """Returns the output, h_n, and the states of all layers but the last, laid out like the output."""
        H, N = self.layers[0][1].shape[1], x.shape[0 if self.batch_first else 1]
        h_n = x.new_empty(len(self.layers), N, H)
        states = []
        for number, (w_ih, w_hh, *biases) in enumerate(self.layers):
            b_ih, b_hh = biases or (None, None)
            filters = as_filters(w_ih)
            z = self.engine.conv2d_fprop(as_image(x), filters, b_ih, _POINTWISE, self.precision, torch.channels_last, b_hh)
            z = z.permute(0, 2, 3, 1).squeeze(0)
            one = slice(number, number + 1)
            start = None if h0 is None else h0[one]
            h = self.engine.rnn_forward(self.steps(z), w_hh.unsqueeze(0), start, self.options, h_n[one])
            x = self.steps(h)
            states.append(x)
        return states[-1], h_n, *states[:-1]

    def steps(self, sequence: Tensor) -> Tensor:
        """Exchanges the layout of the input for (T, N, ·), or (T, N, ·) for it."""
        return sequence.transpose(0, 1) if self.batch_first else sequence

    def backward(
        self,
        dy: Tensor | None,
        dh_n: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        states: Sequence[Tensor],
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, h0 and the weights, None where `needs` says that one is not needed.

        Args:
            dy, dh_n: the gradients of the output and of h_n, or None for zeros.
            states: those of every layer.
        """
        count = len(self.layers[0])
        dh0 = None if h0 is None or not needs[1] else torch.empty_like(h0, memory_format=torch.contiguous_format)
        gradients: list[Tensor | None] = []
        dh = None if dy is None else self.steps(dy)
        for number in reversed(range(len(self.layers))):
            w_ih, w_hh = self.layers[number][:2]
            one = slice(number, number + 1)
            h, below = self.steps(states[number]), self.steps(x if number == 0 else states[number - 1])
            start, last = (None if state is None else state[one] for state in (h0, dh_n))
            dz, dstart = self.engine.rnn_backward(dh, h, w_hh.unsqueeze(0), start, self.options, last, dh0 is not None)
            if dh0 is not None and dstart is not None:
                dh0[one] = dstart
            own = needs[2 + number * count : 2 + (number + 1) * count]
            gradients[:0] = self._weights(dz, h, below, start, own)
            dh = None
            if number > 0 or needs[0]:
                size = (dz.shape[0], dz.shape[1])
                dx = self.engine.conv2d_dgrad(
                    as_image(dz), as_filters(w_ih), size, _POINTWISE, self.precision, torch.channels_last
                )
                dh = dx.permute(0, 2, 3, 1).squeeze(0)
        return None if dh is None else self.steps(dh), dh0, *gradients

    def _weights(
        self, dz: Tensor, h: Tensor, below: Tensor, start: Tensor | None, needs: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """Returns the gradients of the weights of one layer."""
        image = as_image(dz)
        dw_ih = dw_hh = db = None
        if needs[0] and any(needs[2:]):
            dw_ih, db = self.engine.conv2d_wgrad_bias(image, as_image(below), (1, 1), _POINTWISE, self.precision)
        elif needs[0]:
            dw_ih = self.engine.conv2d_wgrad(image, as_image(below), (1, 1), _POINTWISE, self.precision)
        elif any(needs[2:]):
            db = dz.sum((0, 1))
        if needs[1] and start is None:
            dw_hh = self.engine.conv2d_wgrad(image, as_image(h), (1, 1), _PREVIOUS, self.precision)
        elif needs[1] and start is not None:
            dw_hh = self.engine.conv2d_wgrad(image, as_image(torch.cat([start, h[:-1]])), (1, 1), _POINTWISE, self.precision)
        biases = [db if needed else None for needed in needs[2:]]
        return [None if dw is None else dw.squeeze(3).squeeze(2) for dw in (dw_ih, dw_hh)] + biases


class RnnFused:
    """The network as prepared calls know an operator (`prepared.derivative.Operation`), and its own definition."""

    name = "RnnFused"
    anchored = False
    has_history = False

    def __init__(self) -> None:
        self.definition = self
        self.table = Table()

    def compute_unprepared(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The output, h_n and the inner states, computed as usual."""
        numbers = Numbers(*inputs[-len(Numbers._fields) :])
        x, h0, *weights = inputs[: -len(Numbers._fields)]
        return _Network(x, weights, numbers).forward(x, h0)

    def compute(self, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        """The output, h_n and the inner states, by a prepared call if there is one."""
        if not prepared.sights:
            return self.compute_unprepared(*tensors, *numbers)
        x, still_holds = tensors[0], None
        assert x is not None
        if x.is_cuda and x.dtype == torch.float32:
            precision = switched_precision("rnn")
            still_holds = lambda: switched_precision("rnn") == precision  # noqa: E731
        results: tuple[Tensor, ...] = serve(self.table, self.compute_unprepared, tensors, tuple(numbers), still_holds)
        return results

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        """Saves the inputs and the states of every layer."""
        ctx.numbers = Numbers(*inputs[-len(Numbers._fields) :])
        x, h0, *weights = inputs[: -len(Numbers._fields)]
        output, _, *inner = outputs
        ctx.mark_non_differentiable(*inner)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, *inner, output, *weights)

    def backward(self, ctx: Any, dy: Tensor | None, dh_n: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """The gradients of x, h0 and the weights."""
        numbers: Numbers = ctx.numbers
        x, h0, *rest = ctx.saved_tensors
        states, weights = rest[: numbers.num_layers], rest[numbers.num_layers :]
        needs = ctx.needs_input_grad[: 2 + len(weights)]
        if torch.is_grad_enabled() or not is_plain((dy, dh_n, *ctx.saved_tensors)):
            return _differentiable(dy, dh_n, (x, h0, *weights), needs, numbers)
        try:
            return _Network(x, weights, numbers).backward(dy, dh_n, x, h0, states, needs)
        except SizeError:  # the operators of the layers know what to do
            return _differentiable(dy, dh_n, (x, h0, *weights), needs, numbers)


def _differentiable(
    dy: Tensor | None, dh_n: Tensor | None, tensors: Any, needs: tuple[bool, ...], numbers: Numbers
) -> tuple[Tensor | None, ...]:
    """The gradients of the tensors by the operators of `rnn_stack`, so that they can be differentiated again."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, since a tensor may have been computed from another one, through which no gradient is wanted here.
        views: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        x, h0, *weights = views
        stack, start = _stack(x, h0, weights, numbers)
        results = stack.run(x, start, Steps(None, None))
        wanted = [tensor for tensor, needed in zip(views, needs, strict=True) if needed]
        pairs = [(result, gradient) for result, gradient in zip(results, (dy, dh_n), strict=True) if gradient is not None]
        outputs, output_gradients = zip(*pairs, strict=True) if pairs else ((), ())
        gradients = iter(
            torch.autograd.grad(outputs, wanted, output_gradients, create_graph=create_graph, allow_unused=True)
            if pairs
            else [None] * len(wanted)
        )
    return tuple(next(gradients) if needed else None for needed in needs)


def _stack(x: Tensor, h0: Tensor | None, weights: list[Tensor], numbers: Numbers) -> tuple[Stack, Tensor]:
    """Returns the layers as `rnn_stack` composes them, and their initial state."""
    count = len(weights) // numbers.num_layers
    layers = [[tuple(weights[i : i + count])] for i in range(0, len(weights), count)]
    stack = Stack(layers, numbers.batch_first, 0.0, numbers.nonlinearity, numbers.engine)
    N, H = x.shape[0 if numbers.batch_first else 1], layers[0][0][1].shape[1]
    return stack, x.new_zeros(numbers.num_layers, N, H) if h0 is None else h0


RNN_FUSED = RnnFused()


class _Function(Function):
    """The network as an autograd Function; its arguments are the tensors and the `Numbers`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, numbers = inputs
        outputs = RNN_FUSED.compute(tuple(tensors), numbers)
        RNN_FUSED.setup_context(ctx, (*tensors, *numbers), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return *RNN_FUSED.backward(ctx, *gradients[:2]), None


def rnn_fused(tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Runs the network on x, h0 or None, and the weights; returns the output and h_n.

    The call has to be plain (`plain.is_plain`), without a forward-mode derivative, and its tensors have been checked.
    """
    wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    output, h_n, *_ = _Function.apply(*tensors, numbers) if wanted else RNN_FUSED.compute(tensors, numbers)
    return output, h_n
