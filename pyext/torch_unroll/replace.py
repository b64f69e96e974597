"""Swapping the modules of an existing model for torch_unroll's, in place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

import torch_unroll.nn as unrolled

_TWINS = {getattr(torch.nn, name): getattr(unrolled, name) for name in ("Conv2d", "MaxPool2d", "RNN", "RNNCell")}


@dataclass
class Report:
    """What was swapped, and what was left and why; prints as a table."""

    swapped: dict[str, str] = field(default_factory=dict)  # module's path -> its class
    left: dict[str, str] = field(default_factory=dict)  # module's path -> the reason

    def __str__(self) -> str:
        rows = [(name or "(the model)", "swapped", kind) for name, kind in self.swapped.items()]
        rows += [(name or "(the model)", "left", reason) for name, reason in self.left.items()]
        width = max((len(name) for name, *_ in rows), default=0)
        lines = [f"{name:<{width}}  {what:<7}  {detail}" for name, what, detail in rows]
        return "\n".join([*lines, f"{len(self.swapped)} swapped, {len(self.left)} left"])


def replace(model: torch.nn.Module) -> Report:
    """Makes every Conv2d, MaxPool2d, RNN and RNNCell of a model one of torch_unroll's; the numbers stay, the kernels change.

    A module's class is changed where it stands: its identity, parameters, state_dict, hooks and ties survive. Only torch.nn's own
    classes are touched: a subclass may compute something else, and a parametrized module is a subclass that torch makes; both are
    reported instead.

    Args:
        model: any module; itself swapped if it is one of these.

    Returns:
        A `Report`: `swapped` and `left`, by the modules' paths.
    """
    report = Report()
    for name, module in model.named_modules():
        kind = type(module)
        if kind in _TWINS:
            module.__class__ = _TWINS[kind]
            report.swapped[name] = kind.__name__
        elif kind not in _TWINS.values():
            base = next((each for each in _TWINS if isinstance(module, each)), None)
            if base is not None:
                what = (
                    "parametrized" if torch.nn.utils.parametrize.is_parametrized(module) else f"a subclass of nn.{base.__name__}"
                )
                report.left[name] = f"{kind.__name__} is {what}"
    return report
