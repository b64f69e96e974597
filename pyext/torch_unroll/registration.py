"""How an op becomes a torch operator that is differentiable to any order, compilable, and known to torch.func.

An op is described once, by a class of static methods (see `Operator`). From it come

* the operator `torch.ops.torch_unroll.<name>`, defined in Python: as fast as a C++ definition, and there without a compiler;
* an autograd Function at the operator's Autograd key. A Function merely around an operator fails `opcheck`;
* a second Function in the style torch.func wants (`setup_context` and `vmap`). It costs 21 µs more, so it serves only while a
  transform is active, where a Function at the Autograd key does not work at all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

LIBRARY = torch.library.Library("torch_unroll", "DEF")

#: The vmap that `torch.autograd.grad(..., is_grads_batched=True)` runs a backward in; its tensors look like any other.
_LEGACY_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


class Operator:
    """What describes an op. Arguments are the schema's, positionally; `vmap` and `jvp` follow `torch.autograd.Function`."""

    #: Whether torch.autocast lowers the floating-point inputs, as it does for torch's operator of the same name.
    autocast: bool = False

    @staticmethod
    def compute(*inputs: Any) -> Any:
        """The result, on real tensors; autograd is off here."""
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
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg() or tensor.is_meta):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._dispatch_tls_is_dispatch_key_included(_LEGACY_VMAP)
    )


def _lower(inputs: tuple[Any, ...], device_type: str) -> tuple[Any, ...]:
    """The inputs as autocast hands them on: every floating-point tensor but fp64 in its dtype."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        value.to(dtype)
        if isinstance(value, Tensor)
        and value.device.type == device_type
        and value.is_floating_point()
        and value.dtype != torch.float64
        else value
        for value in inputs
    )


def _register_autocast(name: str, op: Any, device_type: str) -> None:
    """Lowers the inputs of an op under autocast and runs it with autocast off, so that no product inside it is lowered again."""
    key = f"Autocast{device_type.upper()}"
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*inputs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return op(*_lower(inputs, device_type))

    LIBRARY.impl(name, autocast, key)


def operator(schema: str, definition: type[Operator]) -> Callable[..., Any]:
    """Registers an op under its schema; yields the function to call, the same in eager mode, under `torch.compile` and under
    torch.func's transforms."""
    name, _, arguments = schema.partition("(")
    arity = len(list(takewhile(lambda argument: argument.startswith("Tensor"), arguments.split(", "))))  # tensors come first
    LIBRARY.define(schema)
    LIBRARY.impl(name, definition.compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"torch_unroll::{name}", definition.fake, lib=LIBRARY)
    op = getattr(torch.ops.torch_unroll, name).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        definition.setup_context(ctx, inputs, output)
        return output

    def forward_plain(ctx: Any, *inputs: Any) -> Any:
        output = definition.compute(*inputs)
        definition.setup_context(ctx, inputs, output)
        return output

    def forward_transformed(*inputs: Any) -> Any:
        return op(*inputs)  # a Function's forward runs without gradients: a guard would only stop torch.compile

    derivatives = {"backward": staticmethod(definition.backward), "jvp": staticmethod(definition.jvp)}
    transforms = {"setup_context": staticmethod(definition.setup_context), "vmap": staticmethod(definition.vmap)}

    def function(forward: Callable[..., Any], **methods: Any) -> type[Function]:
        return type(definition.__name__, (Function,), {"forward": staticmethod(forward), **derivatives, **methods})

    dispatched, plain, transformed = function(forward), function(forward_plain), function(forward_transformed, **transforms)

    def autograd(*inputs: Any) -> Any:
        if _differentiates(inputs[:arity]):
            return dispatched.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    LIBRARY.impl(name, autograd, "Autograd")
    for device_type in ("cpu", "cuda") if definition.autocast else ():
        _register_autocast(name, op, device_type)
    torch.library.register_vmap(f"torch_unroll::{name}", definition.vmap, lib=LIBRARY)

    def call(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            device_type = inputs[0].device.type
            if definition.autocast and torch.is_autocast_enabled(device_type):
                inputs = _lower(inputs, device_type)
            return transformed.apply(*inputs)
        if not torch.compiler.is_compiling() and _is_plain(tensors := inputs[:arity]):
            return plain.apply(*inputs) if _differentiates(tensors) else definition.compute(*inputs)
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
