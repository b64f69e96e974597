"""Explains which engine and kernel serve a call, and why no other does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from torch_unroll.engines import NAMES, claims, refusal, resolve, select
from torch_unroll.engines.compiled.recording import TORCHS_OWN, recording
from torch_unroll.kernels.planning import Selected
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.programs import is_transformed
from torch_unroll.rnn import beyond_torch, engine_or_torch

#: op -> the module that holds its function
_MODULES = {
    "conv2d": "conv2d",
    "conv_transpose2d": "conv2d",
    "unfold": "unfold",
    "fold": "unfold",
    "max_pool2d": "max_pool2d",
    "max_over_time": "max_pool2d",
    "rnn": "rnn",
    "rnn_cell": "rnn",
}


@dataclass
class Availability:
    """Whether each engine computes float32 convolutions on a device; prints as a table."""

    device: torch.device
    reasons: dict[str, str | None]  # engine -> why it does not run, or None if it does

    def __str__(self) -> str:
        return "\n".join(f"{name:<6} {'runs here' if reason is None else reason}" for name, reason in self.reasons.items())


def available_engines(device: torch.device | str | None = None) -> Availability:
    """Returns for each engine whether it can run here, judged by float32 convolution, and why not if it cannot.

    Args:
        device: the device of the tensors; by default the GPU if there is one, else the CPU.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Availability(place, {name: refusal(name, "conv2d", place, torch.float32) for name in NAMES})


@dataclass
class Explanation:
    """How a call was served; prints as a few lines."""

    op: str
    engine: str  # its name, or "torch's own operator"
    passed_over: dict[str, str]  # engine -> why it did not serve the call
    launches: list[LaunchPlan] = field(default_factory=list)
    #: The most bytes of workspace that the call and its backward had allocated at once.
    workspace_bytes: int = 0
    #: Kernel function, such as "conv2d_dgrad" -> the variant, tile and splits that computed it, its time (measured on a GPU of
    #: this kind, or predicted), what bounds it, and why other variants did not compute it.
    selections: dict[str, Selected[Any]] = field(default_factory=dict)
    #: Operator of the forward pass -> whether calls like this one are prepared, that is, launched without being planned again.
    preparation: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: engine {self.engine}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_over.items()]
        lines += [f"  {_describe(plan)}" for plan in self.launches]
        lines += [f"  {function}: {selected}" for function, selected in self.selections.items()]
        lines += [
            f"  {function}: not {variant}: {reason}"
            for function, selected in self.selections.items()
            for variant, reason in selected.passed_over
        ]
        if self.launches:
            lines.append(f"  workspace {self.workspace_bytes} B")
            lines += [f"  {operator}: {state}" for operator, state in self.preparation.items()]
        return "\n".join(lines)


def _describe(plan: LaunchPlan) -> str:
    config = plan.config
    parts = [f"grid {_times(config.grid)}", f"block {_times(config.block)}"]
    if config.cluster != (1, 1, 1):
        parts.append(f"cluster {_times(config.cluster)}")
    parts.append(f"{config.shared_bytes} B shared")
    if config.cooperative:
        parts.append("cooperative")
    return f"{plan.variant}: {plan.kernel.expression}  {', '.join(parts)}"


def _times(extents: tuple[int, int, int]) -> str:
    return "×".join(str(extent) for extent in extents)


def _without_history(arguments: Any) -> Any:
    """The arguments of a call with every tensor detached, so that backward neither enters nor frees the caller's graph.

    Within torch.compile and torch.func, which do not allow that, they are returned as they are.
    """
    if is_transformed():
        return arguments
    detached: dict[Tensor, Tensor] = {}  # a tensor that is passed twice remains one tensor

    def detach(tensor: Tensor) -> Tensor:
        if tensor not in detached:
            detached[tensor] = tensor.detach().requires_grad_(tensor.requires_grad)
        return detached[tensor]

    return tree_map_only(Tensor, detach, arguments)


def _unclaimed(op: str, input: Tensor, arguments: Mapping[str, Any]) -> str:
    """What serves a call with engine "auto" that no engine claims: engine `torch` where torch lacks the operator or an option of
    the call, and for recurrence within torch.compile and torch.func; else torch's own operator."""
    if op == "max_over_time":
        return "torch"
    if op not in ("rnn", "rnn_cell"):
        return TORCHS_OWN
    options = (arguments[name] for name in ("nonlinearity", "lengths", "recompute_segments") if name in arguments)
    return engine_or_torch("auto", False, input, beyond_torch(*options)) or TORCHS_OWN


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Makes a call, and its backward if an input requires grad, and returns how it was served.

    Args:
        op: the name of one of torch_unroll's functions, such as "conv2d".
        args, kwargs: the arguments of that function.

    Returns:
        An `Explanation`: the engine, the kernels with their launch shapes, the workspace, the variant that was selected for each
        kernel function and how long it is expected to take, why other engines and variants were passed over, and whether calls
        like this one are prepared.

    Raises:
        ValueError: there is no such op.
    """
    if op not in _MODULES:
        raise ValueError(f"op: expected one of {', '.join(_MODULES)}, got {op!r}")
    function = getattr(import_module(f"torch_unroll.{_MODULES[op]}"), op)
    args, kwargs = _without_history((args, kwargs))
    with recording() as record:
        outputs = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        preparation = dict(record.preparation)
        wanted = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if outputs and wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(output) for output in outputs], allow_unused=True)
    bound = signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    asked, input = resolve(bound.arguments["engine"]), next(iter(bound.arguments.values()))
    if record.too_large:
        reason, serving = record.too_large
        if serving == TORCHS_OWN:
            serving = _unclaimed(op, input, bound.arguments)
        return Explanation(op, serving, {name: reason for name in NAMES if name != serving})
    if not claims(asked, input):
        serving = _unclaimed(op, input, bound.arguments)
        server = serving if serving == TORCHS_OWN else f"engine {serving}"
        why = f"{input.dtype} on {input.device} is served by {server} unless an engine is named"
        return Explanation(op, serving, {name: why for name in NAMES if name != serving})
    serving = select(asked, op, input.device, input.dtype).name
    reasons = {name: refusal(name, op, input.device, input.dtype) for name in NAMES[: NAMES.index(serving)]}
    passed_over = {name: reason or f"engine {asked} was asked for" for name, reason in reasons.items()}
    return Explanation(
        op=op,
        engine=serving,
        passed_over=passed_over,
        launches=[plan for _, plan in record.launches],
        workspace_bytes=record.workspace_bytes,
        selections=record.selections,
        preparation=preparation,
    )
