"""Replacing the modules of an existing model with torch_unroll's in place, and restoring torch's."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from torch_unroll import quantization
from torch_unroll.nn.locally_connected import LocallyConnected2d
from torch_unroll.nn.twins import OURS, TORCHS

#: torch.nn's convolutions, max poolings and recurrences without kernels here, and the base classes from which users derive more.
_WITHOUT_KERNELS = (
    *(getattr(torch.nn, f"{kind}{dims}d") for kind in ("Conv", "ConvTranspose", "MaxPool") for dims in (1, 3)),
    *(getattr(torch.nn, f"{kind}{dims}d") for kind in ("AdaptiveMaxPool", "MaxUnpool") for dims in (1, 2, 3)),
    *(torch.nn.FractionalMaxPool2d, torch.nn.FractionalMaxPool3d),
    *(torch.nn.LSTM, torch.nn.LSTMCell, torch.nn.GRU, torch.nn.GRUCell),
    *(torch.nn.modules.conv._ConvNd, torch.nn.modules.pooling._MaxPoolNd, torch.nn.RNNBase, torch.nn.RNNCellBase),
)
_FAMILIES = re.compile("Conv|MaxPool|RNN|LSTM|GRU|Fold|Unfold")

#: torch's functions that torch_unroll has too, as graphs of torch.fx call them -> name. `_ATEN` matches the names of the
#: operators that graphs of torch.export call instead.
_FUNCTIONS = {
    **{function: function.__name__ for function in (F.conv2d, F.conv_transpose2d, F.unfold, F.fold, torch.max_pool2d)},
    **{function: function.__name__ for function in (torch.rnn_tanh, torch.rnn_relu, torch.rnn_tanh_cell, torch.rnn_relu_cell)},
    F.max_pool2d: "max_pool2d",
}
_ATEN = re.compile(r"aten::(conv2d|convolution|conv_transpose2d|im2col|col2im|max_pool2d\w*|rnn_(tanh|relu)\w*)(\.|$)")

_BEFORE = "call replace before tracing; scripting accepts only torch's modules"
_NOTES = {
    torch.nn.RNN: "isinstance finds a torch.nn.RNNBase, not a torch.nn.RNN",
    torch.nn.RNNCell: "quantize_dynamic converts it only if it is passed torch_unroll.nn.RNNCell",
}
#: The reason for not swapping a module that has a `forward` of its own, usually a tool's wrapper: the wrapper calls the forward
#: of the original class, so changing the class would have no effect.
_OWN_FORWARD = "this {} has its own forward"


@dataclass
class Report:
    """Which modules were swapped, and which were left and why; prints as a table."""

    swapped: dict[str, str] = field(default_factory=dict)  # path of a module -> its former class
    left: dict[str, str] = field(default_factory=dict)  # path of a module -> the reason
    notes: dict[str, str] = field(default_factory=dict)  # path of a swapped module -> what differs from before
    verb: str = "swapped"  # the table's word for what happened

    def __str__(self) -> str:
        rows = [(name, self.verb, kind, self.notes.get(name)) for name, kind in self.swapped.items()]
        rows += [(name, "left", reason, None) for name, reason in self.left.items()]
        width = max((len(name or "(the model)") for name, *_ in rows), default=0)
        lines = [
            f"{name or '(the model)':<{width}}  {verb:<{len(self.verb)}}  {detail}{f' ({note})' if note else ''}"
            for name, verb, detail, note in rows
        ]
        if self.swapped:
            counts = Counter(self.swapped.values())
            lines.append(f"{self.verb}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
        return "\n".join([*lines, f"{len(self.swapped)} {self.verb}, {len(self.left)} left"])


def _calls_of_graph(module: GraphModule) -> list[str]:
    """The functions that a graph calls directly, without a module, and that torch_unroll has too."""
    calls = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS:
            calls.append(_FUNCTIONS[node.target])
        elif isinstance(node.target, torch._ops.OpOverload) and (call := _ATEN.match(node.target.name())):
            calls.append(call[1])
    return calls


def _reason(module: torch.nn.Module) -> str | None:
    """Why a convolution, max pooling, fold or recurrence of torch's, or a graph that calls one, is not swapped; None for all
    other modules."""
    kind = type(module)
    if isinstance(module, ScriptModule):
        name = str(getattr(module, "original_name", ""))
        return f"{name} is scripted or traced: {_BEFORE}" if _FAMILIES.search(name) else None
    if isinstance(module, GraphModule):
        calls = ", ".join(f"{call} ({count})" for call, count in Counter(_calls_of_graph(module)).items())
        return f"its graph calls these functions directly, without a module: {calls}" if calls else None
    # torch.ao.nn.intrinsic.modules is excepted, since its fused modules compute in floating point.
    if re.match(r"torch\.ao\.nn\.(?!intrinsic\.modules\.)", kind.__module__):
        return (
            f"{kind.__name__} is quantised, or prepared for quantisation-aware training"
            if _FAMILIES.search(kind.__name__)
            else None
        )
    if isinstance(module, tuple(TORCHS)):
        return None
    base = next((base for base in kind.__mro__ if base in OURS or base in _WITHOUT_KERNELS), None)
    if base is None:
        return None
    if base not in OURS:
        named = kind if base.__name__.startswith("_") or base.__name__.endswith("Base") else base
        return f"no kernels for {named.__name__}"
    if isinstance(module, LazyModuleMixin):
        return f"{kind.__name__} becomes a {base.__name__} at its first call: call replace after that"
    if is_parametrized(module):
        return f"{kind.__name__} is parametrized"
    if kind is base:
        return _OWN_FORWARD.format(kind.__name__)
    return f"{kind.__name__} is a subclass of nn.{base.__name__}"


def _require_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def replace(model: torch.nn.Module) -> Report:
    """Turns every Conv2d, ConvTranspose2d, Unfold, Fold, MaxPool2d, RNN and RNNCell of a model into torch_unroll's module of that
    name. Parameters keep their values; only the kernels differ.

    The class of a module is changed in place, so its identity, parameters, state_dict, hooks and ties are preserved. Only
    torch.nn's own classes are changed: a subclass may compute something else, and a parametrized module is a subclass that torch
    creates. Both are reported instead, as is a module whose forward a tool has wrapped, and every convolution, max pooling and
    recurrence that is scripted, quantised, lazy, or of a kind without kernels here. Functions that a forward calls, such as
    F.conv2d, are not modules; `torch_unroll.override` affects them.

    Each new class is a subclass of torch's, except RNN, because torch.compile rejects every subclass of torch.nn.RNN: afterwards,
    `isinstance(module, torch.nn.RNN)` is False and `isinstance(module, torch.nn.RNNBase)` is True. Code that looks up the exact
    class of a module does not know the new classes; call `restore` before such code. torch.ao's eager quantisation is an
    exception: the new classes are added to its tables.

    Args:
        model: any module; it is itself swapped if it is of one of these classes.

    Returns:
        A `Report` with `swapped`, `left` and `notes` by the paths of the modules; a module with several paths is listed under the
        first.

    Raises:
        TypeError: the model is no module.
    """
    _require_module(model)
    report, scripted = Report(), set[torch.nn.Module]()
    for name, module in model.named_modules():
        kind = type(module)
        if kind in OURS and "forward" not in vars(module):
            module.__class__ = OURS[kind]
            report.swapped[name] = kind.__name__
            if kind in _NOTES:
                report.notes[name] = _NOTES[kind]
        elif reason := _reason(module):
            report.left[name] = reason
        elif isinstance(module, ScriptModule) and module not in scripted:
            report.left[name] = f"{type(module).__name__}: its calls are already recorded: {_BEFORE}"
        if isinstance(module, ScriptModule):
            scripted.update(module.modules())
    if report.swapped:
        quantization.register()
    return report


def _unsupported_by_torch(module: torch.nn.Module) -> str | None:
    """Why torch's class of the same name cannot replace a module of torch_unroll's; None if it can."""
    nonlinearity = str(getattr(module, "mode", "") or getattr(module, "nonlinearity", "tanh")).removeprefix("RNN_").lower()
    return (
        None if nonlinearity in ("tanh", "relu") else f"torch has no {type(module).__name__} with nonlinearity {nonlinearity!r}"
    )


def _torchs_class(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class of torch that corresponds to the module's class of torch_unroll; None if there is none."""
    kind = type(module)
    if is_parametrized(module) and kind.__bases__[0] in TORCHS:
        # parametrize derives a class for the module, which copies of the module share. Changing the bases of that class would
        # change the copies too, so this creates another class.
        members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(kind.__name__, (TORCHS[kind.__bases__[0]],), members)
    return TORCHS.get(kind)


def restore(model: torch.nn.Module) -> Report:
    """Undoes `replace`: turns every module of torch_unroll in a model into torch's module of that name, in place. This includes
    modules that were constructed from `torch_unroll.nn`, and works on copies and unpickled models too.

    Identity, parameters, state_dict, hooks and ties are preserved. Modules with a nonlinearity that torch lacks, every
    LocallyConnected2d, subclasses, and modules whose forward a tool has wrapped are left and reported. The `engine` that a module
    names is dropped, and a note of the report says so.

    Args:
        model: any module; it is itself restored if it is one of torch_unroll's.

    Returns:
        A `Report` with `swapped` (the modules that are torch's again), `left` and `notes` by the paths of the modules.

    Raises:
        TypeError: the model is no module.
    """
    _require_module(model)
    report = Report(verb="restored")
    for name, module in model.named_modules():
        kind, torchs = type(module), _torchs_class(module)
        if torchs is None:
            if isinstance(module, LocallyConnected2d):
                report.left[name] = "torch has no LocallyConnected2d"
            elif base := next((base for base in kind.__mro__ if base in TORCHS), None):
                report.left[name] = f"{kind.__name__} is a subclass of torch_unroll.nn.{base.__name__}"
        elif "forward" in vars(module):
            report.left[name] = _OWN_FORWARD.format(kind.__name__)
        elif reason := _unsupported_by_torch(module):
            report.left[name] = reason
        else:
            module.__class__ = torchs
            engine = vars(module).pop("engine", None)
            report.swapped[name] = kind.__name__
            if engine is not None:
                report.notes[name] = f"its engine {engine!r} was dropped"
            if isinstance(module, torch.nn.RNN):
                module.flatten_parameters()  # cuDNN needs all weights in one block of memory
    return report
