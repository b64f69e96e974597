"""How an op becomes a torch operator that is differentiable to any order, compilable, and known to torch.func.

An op is described once, by a class of static methods (see `Operator`). From it come

* the operator `torch.ops.torch_unroll.<name>`, defined in Python: as fast as a C++ definition, and there without a compiler;
* an autograd Function at the operator's Autograd key. A Function merely around an operator fails `opcheck`;
* a second Function in the style torch.func wants (`setup_context` and `vmap`), at the key that torch.func's transforms dispatch
  by before any other: a Function at the Autograd key does not work within them. To torch.compile, which takes no Function with a
  `jvp`, a call is the operator either way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from torch_unroll.autocast import DEVICE_TYPES, lower
from torch_unroll.checks import hashable, remembering
from torch_unroll.engines.compiled.recording import note_too_large
from torch_unroll.history import in_batched_gradients, with_history
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.shapes import require
from torch_unroll.tracing import holds_tensors, is_tracing, recordable, unrecorded

LIBRARY = torch.library.Library("torch_unroll", "DEF")


class Operator:
    """What describes an op. Arguments are the schema's, positionally; `vmap` and `jvp` follow `torch.autograd.Function`."""

    #: Whether torch.autocast lowers the floating-point inputs, as it does for torch's operator of the same name.
    autocast: bool = False
    #: Whether gradients go through `with_history` where one of the first two inputs requires one, which torch's backward takes.
    has_history: bool = False
    #: Whether the Function has one more output, an empty tensor, for `with_history`.
    anchored: bool = False

    @staticmethod
    def check(*inputs: Any) -> None:
        """Raises unless the inputs fit each other, without reading data. Runs before `compute` and `fake`, however those are
        reached."""
        raise NotImplementedError

    @staticmethod
    def compute(*inputs: Any) -> Any:
        """The result, on real tensors that were checked; autograd is off here."""
        raise NotImplementedError

    @staticmethod
    def fake(*inputs: Any) -> Any:
        """Empty results of the right shape, dtype, strides and device."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves what `backward` and `jvp` need."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of every input, made of ops that are themselves differentiable."""
        raise NotImplementedError

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The tangent of the result."""
        raise NotImplementedError

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """The result for a batch of inputs, and where its batch dimension is."""
        raise NotImplementedError


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keeps tensors for both directions of differentiation."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _differentiates(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether someone will ask for a derivative of this call: only then is a Function worth its cost."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0


_PLAIN = (Tensor, torch.nn.Parameter)


def _is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nothing but autograd would see this call in the dispatcher, so that it can be left out."""
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _PLAIN or tensor.is_neg() or tensor.is_meta or is_functorch_wrapped_tensor(tensor)
        ):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and not is_tracing()
        and not torch._C._is_any_autocast_enabled()
        and not in_batched_gradients()
    )


def _introduce() -> None:
    """Tells torch's counters of FLOPs and DTensor about the operators, once either is imported: importing them here would cost
    those who use neither."""
    if "torch.utils.flop_counter" in sys.modules:
        import_module("torch_unroll.ops.flops").register()
    if "torch.distributed.tensor" in sys.modules:
        import_module("torch_unroll.ops.sharding").register()


def _register_autocast(name: str, op: Any, device_type: str) -> None:
    """Lowers the inputs of an op under autocast and runs it with autocast off, so that no product inside it is lowered again."""
    key = f"Autocast{device_type.upper()}"
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*inputs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return op(*lower(inputs, device_type))

    LIBRARY.impl(name, autocast, key)


def _own(result: Any) -> Any:
    """Results as tensors of their own, which may be changed in place: a view made inside a Function may not."""
    if isinstance(result, Tensor):
        return result.detach() if result._is_view() else result
    return tuple(tensor.detach() if tensor._is_view() else tensor for tensor in result)


def operator(schema: str, definition: type[Operator]) -> Callable[..., Any]:
    """Registers an op under its schema; yields the function to call, the same in eager mode, under `torch.compile` and under
    torch.func's transforms."""
    name, _, arguments = schema.partition("(")
    arity = len(list(takewhile(lambda argument: argument.startswith("Tensor"), arguments.split(", "))))  # tensors come first
    optional = [argument.startswith("Tensor?") for argument in arguments.split(", ")[:arity]]
    engine_at = [argument.partition(")")[0] for argument in arguments.split(", ")].index("str engine")

    def without_limits(inputs: tuple[Any, ...], error: SizeError) -> tuple[Any, ...]:
        """With engine "auto", engine `torch` serves what is too large for the others; a named engine has said why it does not."""
        if inputs[engine_at] != "auto":
            raise error
        note_too_large(str(error), "torch")
        return *inputs[:engine_at], "torch", *inputs[engine_at + 1 :]

    def check_once(*inputs: Any) -> None:
        for number, (tensor, may_be_none) in enumerate(zip(inputs, optional, strict=False)):
            require(may_be_none or tensor is not None, f"{name}: expected a tensor as argument {number}, got None")
        definition.check(*inputs)

    check = remembering(check_once, arity)

    def compute(*inputs: Any) -> Any:
        try:
            check(*inputs)
            return _own(definition.compute(*inputs))
        except SizeError as error:
            inputs = without_limits(inputs, error)
        return compute(*inputs)

    def compute_dispatched(*inputs: Any) -> Any:
        return compute(*hashable(inputs))

    def fake(*inputs: Any) -> Any:
        try:
            check_once(*inputs)
        except SizeError as error:
            check_once(*without_limits(inputs, error))
        return definition.fake(*inputs)

    LIBRARY.define(schema)
    LIBRARY.impl(name, unrecorded(compute_dispatched), "CompositeExplicitAutograd")
    torch.library.register_fake(f"torch_unroll::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.torch_unroll, name).default

    def save_and_anchor(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if definition.anchored:
            output = (*output, inputs[0].new_empty(0))
        definition.setup_context(ctx, inputs, output)
        return output

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        return save_and_anchor(ctx, inputs, output)

    def forward_plain(ctx: Any, *inputs: Any) -> Any:
        return save_and_anchor(ctx, inputs, compute(*inputs))

    def forward_transformed(*inputs: Any) -> Any:
        return op(*inputs)

    def backward(ctx: Any, *gradients: Any) -> Any:
        results = definition.backward(ctx, *gradients)
        return tuple(map(with_history, results)) if definition.has_history and any(ctx.needs_input_grad[:2]) else results

    def jvp_anchored(ctx: Any, *tangents: Any) -> Any:
        moved = definition.jvp(ctx, *tangents)
        return *moved, moved[0].new_zeros(0)

    def function(forward: Callable[..., Any], **methods: Callable[..., Any]) -> type[Function]:
        methods = {"forward": forward, "backward": backward, "jvp": definition.jvp, **methods}
        return type(definition.__name__, (Function,), {key: staticmethod(method) for key, method in methods.items()})

    anchored = {"jvp": jvp_anchored} if definition.anchored else {}
    dispatched, plain = function(forward, **anchored), function(forward_plain, **anchored)
    # torch.func asks of no gradient whether it requires one: its flavour has the definition's own backward.
    transformed = function(
        forward_transformed, setup_context=definition.setup_context, vmap=definition.vmap, backward=definition.backward
    )

    def apply(function: type[Function], inputs: tuple[Any, ...]) -> Any:
        outputs = function.apply(*inputs)
        return outputs[:-1] if definition.anchored else outputs

    def autograd(*inputs: Any) -> Any:
        if _differentiates(inputs[:arity]):
            return apply(dispatched, hashable(inputs))
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    LIBRARY.impl(name, unrecorded(autograd), "Autograd")
    op_recorded = recordable(LIBRARY, schema, op, arity) if "SymInt" in schema else op
    for device_type in DEVICE_TYPES if definition.autocast else ():
        _register_autocast(name, op, device_type)

    def lower_for_autocast(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        device_type = inputs[0].device.type
        enabled = definition.autocast and device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type)
        return lower(inputs, device_type) if enabled else inputs

    def transform(*inputs: Any) -> Any:
        return transformed.apply(*lower_for_autocast(hashable(inputs)))

    LIBRARY.impl(name, transform, "FuncTorchDynamicLayerFrontMode")

    def call(*inputs: Any) -> Any:
        if not torch.compiler.is_compiling():
            if _is_plain(tensors := inputs[:arity]):
                return apply(plain, inputs) if _differentiates(tensors) else compute(*inputs)
            _introduce()
            if not torch._C._are_functorch_transforms_active():  # a pullback that runs when its transform has ended
                inputs = unwrap_dead_wrappers(inputs)
        if is_tracing() and holds_tensors(inputs[arity:]):
            return op_recorded(*lower_for_autocast(inputs))
        return op(*inputs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = definition.__doc__
    return call


def move_batch(tensor: Tensor | None, dim: int | None, size: int, to: int = 0) -> Tensor | None:
    """A vmapped input with its batch dimension at `to`; an input without one is expanded."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.unsqueeze(to).expand(*tensor.shape[:to], size, *tensor.shape[to:])
    return tensor.movedim(dim, to)
