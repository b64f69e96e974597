"""Which engine and kernel serve a call, and why not another."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_unroll.engines import NAMES, claims, refusal, resolve, select
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels.cuda.conv2d.choice import Chosen
from torch_unroll.kernels.table import LaunchPlan

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
    """Whether each engine takes float32 tensors of a device, by name; a string says why not. Prints as a table."""

    device: torch.device
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        return "\n".join(f"{name:<6} {'runs here' if reason is None else reason}" for name, reason in self.reasons.items())


def available_engines(device: torch.device | str | None = None) -> Availability:
    """Each engine, whether it can run here, and if not why not.

    Args:
        device: of the tensors it would run on; by default the GPU if there is one, else the CPU.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Availability(place, {name: refusal(name, "conv2d", place, torch.float32) for name in NAMES})


@dataclass
class Explanation:
    """How a call was served; prints as a few lines."""

    op: str
    engine: str  # or "torch's own operator"
    passed_over: dict[str, str]  # engine -> why it did not serve
    launches: list[LaunchPlan] = field(default_factory=list)
    variants_passed_over: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # function -> (variant, why)
    workspace_bytes: int = 0
    #: Of convolution: direction's function -> its variant, tile and splits; the time it was measured to take on this GPU, or is
    #: predicted to; what bounds it; its workspace.
    choices: dict[str, Chosen] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: engine {self.engine}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_over.items()]
        for plan in self.launches:
            config = plan.config
            cluster = f", cluster {_times(config.cluster)}" if config.cluster != (1, 1, 1) else ""
            cooperative = ", cooperative" if config.cooperative else ""
            shape = (
                f"grid {_times(config.grid)}, block {_times(config.block)}{cluster}, {config.shared_bytes} B shared{cooperative}"
            )
            lines.append(f"  {plan.variant}: {plan.kernel.expression}  {shape}")
        lines += [f"  {function}: {chosen}" for function, chosen in self.choices.items()]
        lines += [
            f"  {function}: not {variant}: {why}"
            for function, choices in self.variants_passed_over.items()
            for variant, why in choices
        ]
        if self.launches:
            lines.append(f"  workspace {self.workspace_bytes} B")
        return "\n".join(lines)


def _times(extents: tuple[int, int, int]) -> str:
    return "×".join(str(extent) for extent in extents)


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Makes a call, and its backward where an input requires grad, and tells how it was served.

    Args:
        op: the name of one of torch_unroll's functions, such as "conv2d".
        args, kwargs: as that function takes them.

    Returns:
        An `Explanation`: the engine, the kernels with their launch shapes, workspace, why other engines and variants were
        passed over, and of a convolution what was chosen for each direction and what is expected of it.

    Raises:
        ValueError: there is no such op.
    """
    if op not in _MODULES:
        raise ValueError(f"op: expected one of {', '.join(_MODULES)}, got {op!r}")
    function = getattr(import_module(f"torch_unroll.{_MODULES[op]}"), op)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with recording() as record:
        outputs = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        if outputs and wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(output) for output in outputs], allow_unused=True)
    asked, first = resolve(kwargs.get("engine")), tensors[0]
    if record.too_large:
        reason, serving = record.too_large
        return Explanation(op, serving, {name: reason for name in NAMES if name != serving})
    if not claims(asked, first):
        why = f"{first.dtype} on {first.device} is served by torch's own operator unless an engine is named"
        return Explanation(op, "torch's own operator", dict.fromkeys(NAMES, why))
    serving = select(asked, op, first.device, first.dtype).name
    reasons = {name: refusal(name, op, first.device, first.dtype) for name in NAMES[: NAMES.index(serving)]}
    passed_over = {name: reason or f"engine {asked} was asked for" for name, reason in reasons.items()}
    launches = [plan for _, plan in record.launches]
    return Explanation(op, serving, passed_over, launches, record.passed_over, record.workspace_bytes, record.choices)
