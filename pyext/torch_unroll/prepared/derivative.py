"""The derivative of a prepared call: one autograd Function, whose backward is a prepared call as well.

Each prepared call has a Function of its own, since a general one would have to look up what to do. It saves the tensors that the
operator's own Function saves, so that a checkpoint, which computes a call twice, may meet either of the two. Its backward has a
prepared call for each set of wanted gradients. Gradients of gradients are computed by the operator's own formulas, and so is
whatever does not match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from torch_unroll.engines.compiled.recording import is_recording
from torch_unroll.history import with_history
from torch_unroll.kernels import changes
from torch_unroll.plain import is_plain
from torch_unroll.prepared import torch_internals
from torch_unroll.prepared.runner import MISS, Run, Source, guarding, launching, returning
from torch_unroll.prepared.sequence import Prepared
from torch_unroll.prepared.table import Table, Tensors, is_capturing, record

_MOST_KINDS = 8  # of gradients and saved tensors, for one set of wanted gradients


class Operation(Protocol):
    """An operator, as prepared calls know it (`ops.registration` makes them)."""

    name: str  # of its autograd Functions
    definition: Any
    table: Table

    def compute_unprepared(self, *inputs: Any) -> Any:
        """The result, computed as usual."""


class Context:
    """Stands in for the ctx of the operator's own Function: it notes what `setup_context` saves and marks, and passes `backward`
    what the prepared call has saved."""

    def __init__(self, needs_input_grad: tuple[bool, ...], saved_tensors: tuple[Any, ...] = (), **state: Any):
        self.needs_input_grad, self.saved_tensors = needs_input_grad, saved_tensors
        self.non_differentiable: tuple[Tensor, ...] = ()
        self.materializes = True
        self.__dict__.update(state)

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        pass  # a call that wants a tangent is not prepared

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materializes = value


_OWN = ("needs_input_grad", "saved_tensors", "non_differentiable", "materializes")


def _like_results(prepared: Prepared) -> tuple[Tensor, ...]:
    """Returns tensors without memory that are otherwise like the results of a prepared call, which are all tensors."""
    memories = [
        torch.empty_strided(allocation.size, allocation.stride, dtype=allocation.dtype, device="meta")
        for allocation in prepared.allocations
    ]
    return tuple(memories[number] for number in prepared.results if number is not None)


class Derivative:
    """How a prepared call is differentiated.

    Args:
        operation, tensors, numbers: the operator and the inputs of a call like it.
        prepared: the prepared call.

    Attributes:
        function: the Function. Its arguments are the tensors, and its results those of the operator without those that are not
            differentiable, but for the first.
    """

    def __init__(self, operation: Operation, prepared: Prepared, tensors: Tensors, numbers: tuple[Any, ...]):
        self.operation, self.numbers = operation, numbers
        self.changes = changes.count
        context = Context((*(tensor is not None and tensor.requires_grad for tensor in tensors), *(False for _ in numbers)))
        results = _like_results(prepared)
        if operation.definition.anchored:
            results = (*results, torch.empty(0, dtype=results[0].dtype, device="meta"))
        operation.definition.setup_context(context, (*tensors, *numbers), results if len(results) > 1 else results[0])
        self.state = {name: value for name, value in vars(context).items() if name not in _OWN}
        hidden = {id(result) for result in context.non_differentiable}
        #: The numbers of the operator's results that are results of the Function.
        self.outputs = [i for i, result in enumerate(results) if id(result) not in hidden]
        self.result_count = len(results)
        #: wanted gradients -> functions of the gradients and the saved tensors, which return the gradients of the tensors, None
        #: if these are to be computed as usual, or MISS
        self.backwards: dict[tuple[bool, ...], tuple[Run, ...]] = {}
        methods = {
            "forward": staticmethod(self._write_forward(prepared, context, tensors, results)),
            "backward": staticmethod(self._write_backward()),
        }
        self.function = type(operation.name, (Function,), methods)

    def _computed(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The results of the operator, computed as usual."""
        results = self.operation.compute_unprepared(*tensors, *self.numbers)
        return (results,) if isinstance(results, Tensor) else results

    def _write_forward(
        self, prepared: Prepared, context: Context, tensors: Tensors, results: tuple[Tensor, ...]
    ) -> Callable[..., Any]:
        """Returns the forward of the Function; it saves what `setup_context` has saved.

        Args:
            results: those of the operator's own Function for these tensors.
        """
        source = launching(prepared, [tensor is not None for tensor in tensors], prepared.results)
        names = {id(tensor): name for tensor, name in zip(tensors, source.parameters, strict=True)}
        names |= {id(result): f"result{i}" for i, result in enumerate(results)}
        computed = "".join(f"result{i}, " for i in range(len(prepared.results)))
        saved = ", ".join("None" if tensor is None else names[id(tensor)] for tensor in context.saved_tensors)
        source.lines += ["if status:", "    fail(status)", f"    {computed}= compute({', '.join(source.parameters)})"]
        if len(results) > len(prepared.results):
            source.lines.append(f"result{len(results) - 1} = allocate((0,), (1,), dtype)  # the anchor")
        source.lines.append(f"context.save_for_backward({saved})")
        if not context.materializes:
            source.lines.append("context.set_materialize_grads(False)")
        source.lines.append(f"return {', '.join(f'result{i}' for i in self.outputs)}")
        source.bound |= {"compute": self._computed, "dtype": results[-1].dtype}
        source.parameters.insert(0, "context")
        return source.function()

    def _write_backward(self) -> Callable[..., Any]:
        """Returns the backward of the Function."""
        gradients = ", ".join(f"gradient{i}" for i in self.outputs)
        lines = [
            "needs, saved = context.needs_input_grad, context.saved_tensors",
            "is_usual = is_grad_enabled() or forward_ad._current_level >= 0 or is_recording() or dispatch_modes()",
            "if not is_usual and changes.count == unchanged:",
            "    for attempt in backwards.get(needs, ()):",
            "        if function_modes():  # they would see, and slow down, every use of a tensor",
            "            with without_function_modes():",
            f"                results = attempt({gradients}, *saved)",
            "        else:",
            f"            results = attempt({gradients}, *saved)",
            "        if results is not MISS:",
            "            if results is None:",
            "                break",
            "            return results",
            "    else:",
            f"        return record(needs, ({gradients},), saved)",
            f"return formulas(needs, ({gradients},), saved)",
        ]
        bound = {
            "is_grad_enabled": torch.is_grad_enabled,
            "forward_ad": forward_ad,
            "is_recording": is_recording,
            "function_modes": torch._C._is_torch_function_mode_enabled,
            "without_function_modes": torch._C.DisableTorchFunction,
            "dispatch_modes": torch._C._len_torch_dispatch_stack,  # guards do not see the modes of make_fx
            "changes": changes,
            "unchanged": self.changes,
            "backwards": self.backwards,
            "MISS": MISS,
            "record": self._record,
            "formulas": self._formulas,
        }
        return Source(["context", *(f"gradient{i}" for i in self.outputs)], lines, bound).function()

    def _formulas(self, needs: tuple[bool, ...], gradients: Tensors, saved: Tensors) -> tuple[Any, ...]:
        """The gradients of the tensors by the operator's own formulas, which can be differentiated again."""
        definition = self.operation.definition
        context = Context((*needs, *(False for _ in self.numbers)), saved, **self.state)
        of_results: list[Tensor | None] = [None] * self.result_count
        for i, gradient in zip(self.outputs, gradients, strict=True):
            of_results[i] = gradient
        results = definition.backward(context, *of_results)[: len(needs)]
        return tuple(map(with_history, results)) if definition.has_history and any(needs[:2]) else tuple(results)

    def _record(self, needs: tuple[bool, ...], gradients: Tensors, saved: Tensors) -> tuple[Any, ...]:
        """Computes the gradients as usual, and records how."""
        tensors = (*gradients, *saved)
        present = [tensor is not None for tensor in tensors]
        check = torch_internals.guard([tensor for tensor in tensors if tensor is not None]) if is_plain(tensors) else None
        if check is None or is_capturing(tensors):
            return self._formulas(needs, gradients, saved)
        results, outcome = record(lambda: self._formulas(needs, gradients, saved), tensors)
        source = guarding(present, check)
        if isinstance(outcome, Prepared):
            launch = returning(outcome, present, outcome.results, single=False)
            source.lines += launch.lines
            source.bound |= launch.bound
        elif outcome.lasting:
            source.lines.append("return None")
        else:
            return results
        self.backwards[needs] = (source.function(), *self.backwards.get(needs, ())[: _MOST_KINDS - 1])
        return results
