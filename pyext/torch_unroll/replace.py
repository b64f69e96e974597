"""Swapping the modules of an existing model for torch_unroll's, in place, and back."""

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

#: torch.nn's other convolutions, max poolings and recurrences, and the bases of those that users write.
_WITHOUT_KERNELS = (
    *(getattr(torch.nn, f"{kind}{dims}d") for kind in ("Conv", "ConvTranspose", "MaxPool") for dims in (1, 3)),
    *(getattr(torch.nn, f"{kind}{dims}d") for kind in ("AdaptiveMaxPool", "MaxUnpool") for dims in (1, 2, 3)),
    *(torch.nn.FractionalMaxPool2d, torch.nn.FractionalMaxPool3d),
    *(torch.nn.LSTM, torch.nn.LSTMCell, torch.nn.GRU, torch.nn.GRUCell),
    *(torch.nn.modules.conv._ConvNd, torch.nn.modules.pooling._MaxPoolNd, torch.nn.RNNBase, torch.nn.RNNCellBase),
)
_FAMILIES = re.compile("Conv|MaxPool|RNN|LSTM|GRU|Fold|Unfold")

#: The functions that graphs call for what torch_unroll computes: those of torch.fx, and the operators of torch.export.
_FUNCTIONS = {
    **{function: function.__name__ for function in (F.conv2d, F.conv_transpose2d, F.unfold, F.fold, torch.max_pool2d)},
    **{function: function.__name__ for function in (torch.rnn_tanh, torch.rnn_relu, torch.rnn_tanh_cell, torch.rnn_relu_cell)},
    F.max_pool2d: "max_pool2d",
}
_ATEN = re.compile(r"aten::(conv2d|convolution|conv_transpose2d|im2col|col2im|max_pool2d\w*|rnn_(tanh|relu)\w*)(\.|$)")

_BEFORE = "replace comes before tracing, and scripting takes torch's modules alone"
_NOTES = {
    torch.nn.RNN: "for isinstance a torch.nn.RNNBase, and no torch.nn.RNN any more",
    torch.nn.RNNCell: "quantize_dynamic takes it if it is given torch_unroll.nn.RNNCell",
}
#: A tool that wraps a module's forward keeps that of the class it found, which a change of class does not reach.
_OWN_FORWARD = "this {} has a forward of its own"


@dataclass
class Report:
    """What was swapped, and what was left and why; prints as a table."""

    swapped: dict[str, str] = field(default_factory=dict)  # module's path -> its class
    left: dict[str, str] = field(default_factory=dict)  # module's path -> the reason
    notes: dict[str, str] = field(default_factory=dict)  # path of a module that was swapped -> what differs from before
    verb: str = "swapped"  # what the table calls that

    def __str__(self) -> str:
        rows = [(name, self.verb, kind, self.notes.get(name)) for name, kind in self.swapped.items()]
        rows += [(name, "left", reason, None) for name, reason in self.left.items()]
        width = max((len(name or "(the model)") for name, *_ in rows), default=0)
        lines = [
            f"{name or '(the model)':<{width}}  {what:<{len(self.verb)}}  {detail}{f' ({note})' if note else ''}"
            for name, what, detail, note in rows
        ]
        if self.swapped:
            counts = Counter(self.swapped.values())
            lines.append(f"{self.verb}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
        return "\n".join([*lines, f"{len(self.swapped)} {self.verb}, {len(self.left)} left"])


def _calls_of_graph(module: GraphModule) -> list[str]:
    """The functions that torch_unroll has too and that a graph calls by itself, without a module."""
    calls = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS:
            calls.append(_FUNCTIONS[node.target])
        elif isinstance(node.target, torch._ops.OpOverload) and (call := _ATEN.match(node.target.name())):
            calls.append(call[1])
    return calls


def _reason(module: torch.nn.Module) -> str | None:
    """Why a module stays torch's that computes what torch_unroll's compute, or something of their families; None for others."""
    kind = type(module)
    if isinstance(module, ScriptModule):
        name = str(getattr(module, "original_name", ""))
        return f"{name} is scripted or traced: {_BEFORE}" if _FAMILIES.search(name) else None
    if isinstance(module, GraphModule):
        calls = ", ".join(f"{call} ({count})" for call, count in Counter(_calls_of_graph(module)).items())
        return f"its graph calls functions, which no module stands for: {calls}" if calls else None
    if re.match(r"torch\.ao\.nn\.(?!intrinsic\.modules\.)", kind.__module__):  # there: containers of floating-point modules
        return f"{kind.__name__} is quantised, or trained for it" if _FAMILIES.search(kind.__name__) else None
    if isinstance(module, tuple(TORCHS)):
        return None
    base = next((base for base in kind.__mro__ if base in OURS or base in _WITHOUT_KERNELS), None)
    if base is None:
        return None
    if base not in OURS:
        named = kind if base.__name__.startswith("_") or base.__name__.endswith("Base") else base
        return f"no kernels for {named.__name__}"
    if isinstance(module, LazyModuleMixin):
        return f"{kind.__name__} becomes a {base.__name__} at its first call: replace comes after that"
    if is_parametrized(module):
        return f"{kind.__name__} is parametrized"
    if kind is base:
        return _OWN_FORWARD.format(kind.__name__)
    return f"{kind.__name__} is a subclass of nn.{base.__name__}"


def _require_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def replace(model: torch.nn.Module) -> Report:
    """Makes every Conv2d, ConvTranspose2d, Unfold, Fold, MaxPool2d, RNN and RNNCell of a model one of torch_unroll's; the numbers
    stay, the kernels change.

    A module's class is changed where it stands: its identity, parameters, state_dict, hooks and ties survive. Only torch.nn's own
    classes are touched: a subclass may compute something else, and a parametrized module is a subclass that torch makes; both are
    reported instead, as is every other convolution, max pooling and recurrence: scripted, quantised, lazy, or of a kind that has
    no kernels here. Functions that a forward calls, such as F.conv2d, are no modules: `torch_unroll.override` reaches them.

    Each of these classes is a subclass of torch's, but for RNN: torch.compile refuses every subclass of torch.nn.RNN, so that
    `isinstance(module, torch.nn.RNN)` is False afterwards, and `isinstance(module, torch.nn.RNNBase)` True. Code that looks a
    module's exact class up finds none of them: `restore` comes before it. The tables of torch.ao's eager quantisation know them.

    Args:
        model: any module; itself swapped if it is one of these.

    Returns:
        A `Report`: `swapped`, `left` and `notes`, by the modules' paths; a module that has several is named by the first.

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
            report.left[name] = f"{type(module).__name__}: what it calls is settled: {_BEFORE}"
        if isinstance(module, ScriptModule):
            scripted.update(module.modules())
    if report.swapped:
        quantization.register()
    return report


def _lacking(module: torch.nn.Module) -> str | None:
    """What torch's class of the same name cannot express of a module of torch_unroll's."""
    nonlinearity = str(getattr(module, "mode", "") or getattr(module, "nonlinearity", "tanh")).removeprefix("RNN_").lower()
    return (
        None if nonlinearity in ("tanh", "relu") else f"torch has no {type(module).__name__} with nonlinearity {nonlinearity!r}"
    )


def _torchs_class(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class of torch's that does what this module's class of torch_unroll's does; None if there is none."""
    kind = type(module)
    if is_parametrized(module) and kind.__bases__[0] in TORCHS:
        # parametrize makes a class for a module, which copies of it share: hence another, and not another base.
        members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(kind.__name__, (TORCHS[kind.__bases__[0]],), members)
    return TORCHS.get(kind)


def restore(model: torch.nn.Module) -> Report:
    """Undoes `replace`: every module of torch_unroll's in a model becomes one of torch's, where it stands, whether `replace` made
    it or it was built as `torch_unroll.nn`'s, and in copies and unpickled models too.

    Identity, parameters, state_dict, hooks and ties survive. What torch cannot express is left and reported: a nonlinearity that
    it lacks, a LocallyConnected2d, a subclass, a forward that a tool has wrapped. An `engine` that a module names is dropped, and
    a note of the report says so.

    Args:
        model: any module; itself restored if it is one of these.

    Returns:
        A `Report`: `swapped`, the modules that are torch's again, `left` and `notes`, by the modules' paths.

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
        elif lacking := _lacking(module):
            report.left[name] = lacking
        else:
            module.__class__ = torchs
            engine = vars(module).pop("engine", None)
            report.swapped[name] = kind.__name__
            if engine is not None:
                report.notes[name] = f"without its engine {engine!r}"
            if isinstance(module, torch.nn.RNN):
                module.flatten_parameters()  # cuDNN wants weights in one piece of memory, and torch_unroll's module does not
    return report
