"""A whole recurrent network of one direction as one autograd Function, with all its gradients.

It serves plain calls without packing, lengths or dropout. Each layer is a product and a recurrence, as in `rnn_stack`, but no
operator of torch runs between them: the product adds both biases, the recurrence starts from no h0 as from zeros, and it writes
h_n and takes its gradient. Gradients of gradients are composed of operators, as in `rnn_stack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from torch_unroll import prepared
from torch_unroll.engines import limits, resolve_precision, select
from torch_unroll.engines.interface import Conv2dGeometry, Engine, RnnOptions
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.ops.linear import as_filters, as_image, linear, outer
from torch_unroll.ops.registration import without_views
from torch_unroll.ops.rnn import rnn_backward
from torch_unroll.ops.rnn_derivatives import Options, Recurrence
from torch_unroll.ops.rnn_steps import Steps
from torch_unroll.ops.saving import stand_in
from torch_unroll.ops.sums import add
from torch_unroll.plain import only_computes
from torch_unroll.prepared.table import Table, Tensors, precision_guard, serve

_POINTWISE = Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
#: The geometry in which an output of a step is the input of the step before: time is the vertical axis, and above it lies 0.
_PREVIOUS = Conv2dGeometry((1, 1), (1, -1, 0, 0), (1, 1), 1)


class Numbers(NamedTuple):
    """The arguments of a network besides its tensors, which are x, h0 and the weights of every layer in torch's order."""

    num_layers: int
    batch_first: bool
    nonlinearity: str
    engine: str

    def steps(self, sequence: Tensor) -> Tensor:
        """A sequence in the layout of the input as (T, N, ·), or such a sequence in the layout of the input."""
        return sequence.transpose(0, 1) if self.batch_first else sequence


class _Arithmetic:
    """How the products and recurrences of a network are computed: by the functions of the engine that serves it."""

    def __init__(self, like: Tensor, numbers: Numbers):
        self.engine: Engine = select(numbers.engine, "rnn", like.device, like.dtype)
        self.precision = resolve_precision("rnn", like)
        self.options = RnnOptions(None, None, numbers.nonlinearity, self.precision)

    def product(self, x: Tensor, w_ih: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
        """x (A, B, I) -> x w_ihᵀ + b_ih + b_hh, (A, B, H)."""
        y = self.engine.conv2d_fprop(as_image(x), as_filters(w_ih), b_ih, _POINTWISE, self.precision, torch.channels_last, b_hh)
        return y.permute(0, 2, 3, 1).squeeze(0)

    def input_gradient(self, dz: Tensor, w_ih: Tensor) -> Tensor:
        """dz (T, N, H) -> dz w_ih, (T, N, I)."""
        size, filters = (dz.shape[0], dz.shape[1]), as_filters(w_ih)
        dx = self.engine.conv2d_dgrad(as_image(dz), filters, size, _POINTWISE, self.precision, torch.channels_last)
        return dx.permute(0, 2, 3, 1).squeeze(0)

    def weight_gradients(
        self, dz: Tensor, h: Tensor, below: Tensor | None, start: Tensor | None, needs: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """The gradients of w_ih, w_hh and the biases of a layer, None where `needs` says that one is not needed.

        Args:
            dz, h: (T, N, H).
            below: the layer's input, (T, N, ·), which the gradient of w_ih needs.
            start: the layer's initial state, (1, N, H), or None for zeros.
        """
        image = as_image(dz)
        dw_ih = dw_hh = db = None
        if needs[0] and any(needs[2:]):
            assert below is not None
            dw_ih, db = self.engine.conv2d_wgrad_bias(image, as_image(below), (1, 1), _POINTWISE, self.precision)
        elif needs[0]:
            assert below is not None
            dw_ih = self.engine.conv2d_wgrad(image, as_image(below), (1, 1), _POINTWISE, self.precision)
        elif any(needs[2:]):
            db = dz.sum((0, 1))
        if needs[1] and start is None:
            dw_hh = self.engine.conv2d_wgrad(image, as_image(h), (1, 1), _PREVIOUS, self.precision)
        elif needs[1] and start is not None:
            previous = as_image(torch.cat([start, h[:-1]]))
            dw_hh = self.engine.conv2d_wgrad(image, previous, (1, 1), _POINTWISE, self.precision)
        biases = [db if needed else None for needed in needs[2:]]
        return [None if dw is None else dw.squeeze(3).squeeze(2) for dw in (dw_ih, dw_hh)] + biases


def _kind(tensor: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype)


class _Saved(NamedTuple):
    """What a call keeps for backward. A tensor that no wanted gradient needs is None."""

    x: Tensor | None
    h0: Tensor | None
    states: Sequence[Tensor]  # of every layer, laid out like the input
    w_ih: Sequence[Tensor | None]  # of every layer
    w_hh: Sequence[Tensor]


class RnnFused:
    """The network as prepared calls know an operator (`prepared.derivative.Operation`), and its own definition."""

    name = "RnnFused"
    anchored = False
    has_history = False

    def __init__(self) -> None:
        self.definition = self
        self.table = Table("rnn")

    def compute_unprepared(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The output, h_n, and the states of all layers but the last, laid out like the output."""
        numbers = Numbers(*inputs[-len(Numbers._fields) :])
        x, h0, *weights = inputs[: -len(Numbers._fields)]
        arithmetic, count = _Arithmetic(x, numbers), len(weights) // numbers.num_layers
        (steps, samples), H = numbers.steps(x).shape[:2], weights[1].shape[1]
        limits.require(numbers.engine, limits.rnn((steps, samples), H, samples, H))
        h_n = x.new_empty(numbers.num_layers, samples, H)
        states = []
        for number in range(numbers.num_layers):
            w_ih, w_hh, *biases = weights[number * count : (number + 1) * count]
            z = numbers.steps(arithmetic.product(x, w_ih, *(biases or (None, None))))
            one = slice(number, number + 1)
            start = None if h0 is None else h0[one]
            h = arithmetic.engine.rnn_forward(z, w_hh.unsqueeze(0), start, arithmetic.options, h_n[one])
            x = numbers.steps(h)
            states.append(x)
        results: tuple[Tensor, ...] = without_views((states[-1], h_n, *states[:-1]))
        return results

    def compute(self, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, ...]:
        """`compute_unprepared`, by a prepared call if there is one."""
        if not prepared.sights:
            return self.compute_unprepared(*tensors, *numbers)
        assert tensors[0] is not None
        still_holds = precision_guard("rnn", tensors[0])
        results: tuple[Tensor, ...] = serve(self.table, self.compute_unprepared, tensors, tuple(numbers), still_holds)
        return results

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        """Saves the states of every layer, and the inputs that the wanted gradients need."""
        ctx.numbers = Numbers(*inputs[-len(Numbers._fields) :])
        x, h0, *weights = inputs[: -len(Numbers._fields)]
        ctx.count = len(weights) // ctx.numbers.num_layers
        needs = ctx.needs_input_grad
        w_ih, w_hh = weights[:: ctx.count], weights[1 :: ctx.count]
        need_h0 = any(needs[3 : 2 + len(weights) : ctx.count])
        output, _, *inner = outputs
        ctx.set_materialize_grads(False)
        kept_inputs = (x if needs[2] else None, h0 if need_h0 else None)
        kept = (*kept_inputs, *inner, output, w_ih[0] if needs[0] else None, *w_ih[1:], *w_hh)
        ctx.kinds = tuple(map(_kind, kept))
        ctx.save_for_backward(*kept)

    def backward(self, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of x, h0 and the weights, from those of the results."""
        layers = ctx.numbers.num_layers
        kept = ctx.saved_tensors  # a checkpoint allows only one read
        x, h0, *rest = kept
        saved = _Saved(x, h0, rest[:layers], rest[layers : 2 * layers], rest[2 * layers :])
        needs = tuple(ctx.needs_input_grad[: 2 + layers * ctx.count])
        dy, dh_n, *inner = gradients
        # Hooks may have changed what was saved; the operators check it, the engine's functions do not.
        devices = {tensor.device for tensor in (*gradients, *kept) if tensor is not None}
        is_unchanged = ctx.kinds == tuple(map(_kind, kept)) and len(devices) == 1
        is_direct = is_unchanged and all(gradient is None for gradient in inner)
        if is_direct and only_computes((dy, dh_n, *kept)):
            with suppress(SizeError):  # the operators know what to do
                return _gradients(dy, dh_n, saved, needs, ctx)
        return differentiable_gradients(gradients, saved, needs, ctx)


def _gradients(
    dy: Tensor | None, dh_n: Tensor | None, saved: _Saved, needs: tuple[bool, ...], ctx: Any
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h0 and the weights, computed by the engine."""
    numbers: Numbers = ctx.numbers
    like = saved.states[0]
    arithmetic = _Arithmetic(like, numbers)
    dh0 = like.new_empty((numbers.num_layers, *numbers.steps(like).shape[1:])) if needs[1] else None
    gradients: list[Tensor | None] = []
    dh = None if dy is None else numbers.steps(dy)
    for number in reversed(range(numbers.num_layers)):
        one, own = slice(number, number + 1), needs[2 + number * ctx.count : 2 + (number + 1) * ctx.count]
        h, below = numbers.steps(saved.states[number]), saved.x if number == 0 else saved.states[number - 1]
        start, last = (None if state is None else state[one] for state in (saved.h0, dh_n))
        w_hh = saved.w_hh[number].unsqueeze(0)
        dz, dstart = arithmetic.engine.rnn_backward(dh, h, w_hh, start, arithmetic.options, last, dh0 is not None)
        if dh0 is not None and dstart is not None:
            dh0[one] = dstart
        below = None if below is None else numbers.steps(below)
        gradients[:0] = arithmetic.weight_gradients(dz, h, below, start, own)
        dh = None
        if (w_ih := saved.w_ih[number]) is not None and (number > 0 or needs[0]):
            dh = arithmetic.input_gradient(dz, w_ih)
    return None if dh is None or not needs[0] else numbers.steps(dh), dh0, *gradients


def differentiable_gradients(
    gradients: Sequence[Tensor | None], saved: _Saved, needs: tuple[bool, ...], ctx: Any
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h0 and the weights, composed of operators, so that they can be differentiated again.

    The saved states are results of the network, through which these gradients depend on its inputs.
    """
    numbers: Numbers = ctx.numbers
    dy, dh_n, *inner = gradients
    options = Options(numbers.nonlinearity, "rnn", numbers.engine)
    of_states = [*inner, dy]
    results: list[Tensor | None] = []
    dh0: list[Tensor] = []
    above = None
    for number in reversed(range(numbers.num_layers)):
        one, own = slice(number, number + 1), needs[2 + number * ctx.count : 2 + (number + 1) * ctx.count]
        h, w_hh = numbers.steps(saved.states[number]), saved.w_hh[number].unsqueeze(0)
        direct = of_states[number]
        dh = add(None if direct is None else numbers.steps(direct), above)
        if dh_n is not None:
            last = F.pad(dh_n[one], (0, 0, 0, 0, h.shape[0] - 1, 0))
            dh = last if dh is None else dh + last
        if dh is None:
            dh = torch.zeros_like(h)
        start = stand_in(None if saved.h0 is None else saved.h0[one], h, (1, *h.shape[1:]))
        dz, dstart = rnn_backward(dh, h, w_hh, start, None, None, *options)
        dh0.insert(0, dstart)
        below = saved.x if number == 0 else saved.states[number - 1]
        dw_ih = dw_hh = None
        if own[0] and below is not None:
            dw_ih = outer(dz, numbers.steps(below), options.precision, options.engine)
        if own[1]:
            dw_hh = Recurrence(w_hh, Steps(None, None), options).weight_gradient(dz, h, start).squeeze(0)
        db = dz.sum((0, 1)) if any(own[2:]) else None
        results[:0] = [dw_ih, dw_hh, *(db if needed else None for needed in own[2:])]
        above, w_ih = None, saved.w_ih[number]
        if w_ih is not None and (number > 0 or needs[0]):
            above = linear(dz, w_ih.mT, None, options.precision, options.engine)
    return None if above is None or not needs[0] else numbers.steps(above), torch.cat(dh0) if needs[1] else None, *results


RNN_FUSED = RnnFused()


class RnnFusedFunction(Function):
    """The network as an autograd Function; its arguments are the tensors and the `Numbers`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, numbers = inputs
        outputs = RNN_FUSED.compute(tuple(tensors), numbers)
        RNN_FUSED.setup_context(ctx, (*tensors, *numbers), outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return *RNN_FUSED.backward(ctx, *gradients), None


def rnn_fused(tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Runs the network on x, h0 or None, and the weights; returns the output and h_n.

    The call has to be plain (`plain.is_plain`), without a forward-mode derivative, and its tensors have been checked.
    """
    wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    output, h_n, *_ = RnnFusedFunction.apply(*tensors, numbers) if wanted else RNN_FUSED.compute(tensors, numbers)
    return output, h_n
