"""How an op becomes a torch operator that is differentiable to any order, compilable, and known to torch.func.

An op is described once, by a class of static methods (see `Operator`), from which `operator` registers:

* the operator `torch.ops.torch_unroll.<name>`, which is defined in Python, so that no C++ compiler is needed;
* an autograd Function at the operator's Autograd key. `opcheck` rejects a Function that is only wrapped around an operator;
* a second Function in the style of torch.func (`setup_context` and `vmap`), at the key by which torch.func's transforms dispatch
  before any other: a Function at the Autograd key does not work inside them.

`torch.compile` accepts no Function with a `jvp`, so it always sees the operator. A call in eager mode that no mode, tensor
subclass, transform or autocast could observe skips the dispatcher: it runs the kernel, inside a third Function if a derivative
may be wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from torch_unroll import prepared
from torch_unroll.autocast import DEVICE_TYPES, lower
from torch_unroll.checks import hashable, remembering
from torch_unroll.engines.compiled.recording import note_too_large
from torch_unroll.history import with_history
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.plain import is_plain
from torch_unroll.prepared.derivative import Operation
from torch_unroll.prepared.table import Table, precision_guard, serve
from torch_unroll.shapes import require
from torch_unroll.tracing import holds_tensors, is_tracing, recordable, unrecorded

LIBRARY = torch.library.Library("torch_unroll", "DEF")


class Operator:
    """The description of an op. The arguments of the methods are those of the schema, by position; `setup_context`, `backward`,
    `jvp` and `vmap` are called as those of a `torch.autograd.Function` are."""

    #: Whether torch.autocast lowers the floating-point inputs, as it does for torch's operators of the same kind.
    autocast: bool = False
    #: Whether the results of `backward` pass through `with_history`, which makes them require a gradient under `create_graph`,
    #: when one of the first two inputs requires a gradient. Those two are the inputs that torch's backward reads.
    has_history: bool = False
    #: Whether the Function returns an additional empty tensor, the anchor for `with_history`.
    anchored: bool = False

    @staticmethod
    def check(*inputs: Any) -> None:
        """Raises if the inputs do not fit together; reads no data. Runs before `fake`, and before `compute` unless inputs of the
        same kind have passed it already."""
        raise NotImplementedError

    @staticmethod
    def compute(*inputs: Any) -> Any:
        """The result, computed from real tensors that have passed `check`. Autograd does not record the computation."""
        raise NotImplementedError

    @staticmethod
    def fake(*inputs: Any) -> Any:
        """Empty results with the shape, dtype, strides and device that `compute` returns."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves what `backward` and `jvp` need."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of every input, composed of ops that are differentiable themselves."""
        raise NotImplementedError

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The tangent of the result."""
        raise NotImplementedError

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """The result for a batch of inputs, and the position of its batch dimension."""
        raise NotImplementedError


class _Signature(NamedTuple):
    """What registration needs to know of a schema, whose first arguments are the tensors."""

    name: str
    arity: int  # the number of tensors
    optional: tuple[bool, ...]  # for each tensor, whether it may be None
    engine: int  # the position of the argument `engine`
    precision: int | None  # that of the argument `precision`, if there is one

    @classmethod
    def from_schema(cls, schema: str) -> _Signature:
        name, _, arguments = schema.partition("(")
        declared = [argument.partition(")")[0] for argument in arguments.split(", ")]
        tensors = list(takewhile(lambda argument: argument.startswith("Tensor"), declared))
        optional = tuple(argument.startswith("Tensor?") for argument in tensors)
        return cls(
            name=name,
            arity=len(tensors),
            optional=optional,
            engine=declared.index("str engine"),
            precision=declared.index("str precision") if "str precision" in declared else None,
        )


def without_views(result: Any) -> Any:
    """The results, detached where they are views: a view that is made inside a Function may not be changed in place."""
    if isinstance(result, Tensor):
        return result.detach() if result._is_view() else result
    return tuple(tensor.detach() if tensor._is_view() else tensor for tensor in result)


#: The operators by name, for the shortcuts of public functions to their prepared calls.
operations: dict[str, Operation] = {}


class _Kernel:
    """The implementation behind an operator: a definition's `compute` and `fake`, each preceded by its `check`."""

    def __init__(self, definition: type[Operator], signature: _Signature):
        self.definition, self.signature = definition, signature
        self._check_remembered = remembering(self._check, signature.arity)
        self.name, self.table = definition.__name__, Table(signature.name)
        operations[signature.name] = self

    def _check(self, *inputs: Any) -> None:
        name, optional = self.signature.name, self.signature.optional
        for number, (tensor, may_be_none) in enumerate(zip(inputs, optional, strict=False)):
            require(may_be_none or tensor is not None, f"{name}: expected a tensor as argument {number}, got None")
        self.definition.check(*inputs)

    def _for_any_size(self, inputs: tuple[Any, ...], error: SizeError) -> tuple[Any, ...]:
        """The inputs with engine `torch`, which serves sizes that are too large for the compiled kernels, in place of "auto". If
        an engine is named, this raises the error instead."""
        at = self.signature.engine
        if inputs[at] != "auto":
            raise error
        note_too_large(str(error), "torch")
        return *inputs[:at], "torch", *inputs[at + 1 :]

    def compute(self, *inputs: Any) -> Any:
        """The result on real tensors, by a prepared call if there is one."""
        arity = self.signature.arity
        try:
            hash(inputs[arity:])
        except TypeError:
            inputs = hashable(inputs)
        if not prepared.sights or inputs[0] is None:
            return self.compute_unprepared(*inputs)
        at = self.signature.precision
        still_holds = None if at is None else precision_guard(inputs[at], inputs[0])
        return serve(self.table, self.compute_unprepared, inputs[:arity], inputs[arity:], still_holds)

    def compute_unprepared(self, *inputs: Any) -> Any:
        """The result on real tensors; the other inputs are hashable."""
        try:
            self._check_remembered(*inputs)
            return without_views(self.definition.compute(*inputs))
        except SizeError as error:
            inputs = self._for_any_size(inputs, error)
        return self.compute_unprepared(*inputs)

    def compute_dispatched(self, *inputs: Any) -> Any:
        """`compute` for inputs that come from the dispatcher, which passes lists."""
        return self.compute(*hashable(inputs))

    def fake(self, *inputs: Any) -> Any:
        """The result on fake tensors."""
        try:
            self._check(*inputs)
        except SizeError as error:
            self._check(*self._for_any_size(inputs, error))
        return self.definition.fake(*inputs)


class _Functions(NamedTuple):
    """An op as autograd Functions, one for each route by which a call that needs a derivative can arrive."""

    dispatched: type[Function]
    direct: type[Function]
    transformed: type[Function]


def _functions(definition: type[Operator], kernel: _Kernel, op: Any) -> _Functions:
    def save_and_anchor(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if definition.anchored:
            output = (*output, inputs[0].new_empty(0))
        definition.setup_context(ctx, inputs, output)
        return output

    def forward_dispatched(ctx: Any, *inputs: Any) -> Any:
        # Modes, fake tensors and graphs lie below autograd and have to see the operator.
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        return save_and_anchor(ctx, inputs, output)

    def forward_direct(ctx: Any, *inputs: Any) -> Any:
        # Nothing below autograd would see the operator, so the call does not pay for the dispatcher.
        return save_and_anchor(ctx, inputs, kernel.compute(*inputs))

    def forward_transformed(*inputs: Any) -> Any:
        # There is no ctx, since torch.func calls `setup_context` itself. The operator dispatches to the next transform.
        return op(*inputs)

    def backward(ctx: Any, *gradients: Any) -> Any:
        results = definition.backward(ctx, *gradients)
        return tuple(map(with_history, results)) if definition.has_history and any(ctx.needs_input_grad[:2]) else results

    def jvp_with_anchor(ctx: Any, *tangents: Any) -> Any:
        results = definition.jvp(ctx, *tangents)
        return *results, results[0].new_zeros(0)

    def function(**methods: Callable[..., Any]) -> type[Function]:
        return type(definition.__name__, (Function,), {name: staticmethod(method) for name, method in methods.items()})

    jvp = jvp_with_anchor if definition.anchored else definition.jvp
    return _Functions(
        dispatched=function(forward=forward_dispatched, backward=backward, jvp=jvp),
        direct=function(forward=forward_direct, backward=backward, jvp=jvp),
        # The backward of this Function is the definition's own, without `with_history`, since torch.func never asks whether a
        # gradient requires a gradient.
        transformed=function(
            forward=forward_transformed,
            setup_context=definition.setup_context,
            backward=definition.backward,
            jvp=definition.jvp,
            vmap=definition.vmap,
        ),
    )


def _needs_derivative(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a derivative of this call may be wanted: only then is a Function worth its cost."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0


def _register_rules_of_imported_modules() -> None:
    """Registers the operators with torch's FLOP counter if its module has been imported, and likewise with DTensor. Importing
    these modules here would slow down programs that use neither."""
    if "torch.utils.flop_counter" in sys.modules:
        import_module("torch_unroll.ops.flops").register()
    if "torch.distributed.tensor" in sys.modules:
        import_module("torch_unroll.ops.sharding").register()


def _register_autocast(name: str, op: Any, device_type: str) -> None:
    """Registers the rule for autocast: it lowers the inputs and runs the op with autocast off, so that no product inside it is
    lowered again."""
    key = f"Autocast{device_type.upper()}"
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*inputs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return op(*lower(inputs, device_type))

    LIBRARY.impl(name, autocast, key)


def _lowered_for_autocast(definition: type[Operator], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    device_type = inputs[0].device.type
    enabled = definition.autocast and device_type in DEVICE_TYPES and torch.is_autocast_enabled(device_type)
    return lower(inputs, device_type) if enabled else inputs


def computation(schema: str, definition: type[Operator]) -> Callable[..., Any]:
    """Returns an op as a function that only computes: for plain calls (`plain.is_plain`) of which no derivative is wanted.

    Such an op is not an operator of torch. Of its definition, only `check` and `compute` are used.
    """
    return _Kernel(definition, _Signature.from_schema(schema)).compute


def operator(schema: str, definition: type[Operator]) -> Callable[..., Any]:
    """Registers an op under its schema.

    Returns:
        The function to call, the same in eager mode, under `torch.compile` and inside torch.func's transforms.
    """
    signature = _Signature.from_schema(schema)
    name, arity = signature.name, signature.arity
    kernel = _Kernel(definition, signature)
    LIBRARY.define(schema)
    LIBRARY.impl(name, unrecorded(kernel.compute_dispatched), "CompositeExplicitAutograd")
    torch.library.register_fake(f"torch_unroll::{name}", kernel.fake, lib=LIBRARY)
    op = getattr(torch.ops.torch_unroll, name).default
    op_recorded = recordable(LIBRARY, schema, op, arity) if "SymInt" in schema else op
    functions = _functions(definition, kernel, op)

    def apply(function: type[Function], inputs: tuple[Any, ...]) -> Any:
        outputs = function.apply(*inputs)
        return outputs[:-1] if definition.anchored else outputs

    def dispatch_autograd(*inputs: Any) -> Any:
        if _needs_derivative(inputs[:arity]):
            return apply(functions.dispatched, hashable(inputs))
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def dispatch_transform(*inputs: Any) -> Any:
        return functions.transformed.apply(*_lowered_for_autocast(definition, hashable(inputs)))

    LIBRARY.impl(name, unrecorded(dispatch_autograd), "Autograd")
    LIBRARY.impl(name, dispatch_transform, "FuncTorchDynamicLayerFrontMode")
    for device_type in DEVICE_TYPES if definition.autocast else ():
        _register_autocast(name, op, device_type)

    def call(*inputs: Any) -> Any:
        if not torch.compiler.is_compiling():
            if is_plain(tensors := inputs[:arity]):
                return apply(functions.direct, inputs) if _needs_derivative(tensors) else kernel.compute(*inputs)
            _register_rules_of_imported_modules()
            if not torch._C._are_functorch_transforms_active():  # a pullback may run after its transform has ended
                inputs = unwrap_dead_wrappers(inputs)
        if is_tracing() and holds_tensors(inputs[arity:]):
            return op_recorded(*_lowered_for_autocast(definition, inputs))
        return op(*inputs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = definition.__doc__
    return call
