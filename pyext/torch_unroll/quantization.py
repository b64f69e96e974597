"""torch.ao's eager quantisation of torch_unroll's modules. torch.ao looks modules up in tables by their exact class, so
`register` adds torch_unroll's classes to these tables.

Observers, quantisation-aware training, fusion and conversion then treat the modules like torch's. `quantize_dynamic` has to be
passed the class `torch_unroll.nn.RNNCell`, since its default set contains only torch's. FX graph mode does not use these tables;
call `torch_unroll.restore` before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torch_unroll.nn.twins import OURS, TORCHS

Fuser = Callable[..., torch.nn.Module]


@contextmanager
def _with_torchs_class(module: torch.nn.Module) -> Iterator[None]:
    """Gives the module torch's class for the duration of a block, since torch.ao's functions accept no other class."""
    kind = type(module)
    module.__class__ = TORCHS.get(kind, kind)
    try:
        yield
    finally:
        module.__class__ = kind


def _accepting_ours(target: type[Any]) -> type[Any]:
    """A subclass of `target`, the class to which torch.ao converts a module, that accepts torch_unroll's module."""

    @functools.wraps(target.from_float)
    def from_float(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _with_torchs_class(module):
            return target.from_float(module, *args, **kwargs)

    return type(target.__name__, (target,), {"from_float": staticmethod(from_float)})


def _fusing_ours(fuse: Fuser) -> Fuser:
    """A version of `fuse` that accepts a module of torch_unroll as the first one; the convolution in the result has
    torch_unroll's class too."""

    @functools.wraps(fuse)
    def fused(is_qat: bool, first: torch.nn.Module, *others: torch.nn.Module) -> torch.nn.Module:
        with _with_torchs_class(first):
            result = fuse(is_qat, first, *others)
        for module in result.modules():
            if type(module) is TORCHS.get(type(first)):  # a copy of `first`, with a normalisation folded in
                module.__class__ = type(first)
        return result

    return fused


@functools.cache
def register() -> None:
    """Adds torch_unroll's modules to the tables of `torch.ao.quantization`, if this version of torch has them.

    `torch_unroll.replace` calls this. Importing `torch_unroll` does not, because importing `torch.ao.quantization` is slow.
    """
    try:
        from torch.ao.quantization import fuser_method_mappings, quantization_mappings
    except ImportError:
        return
    for kind in ("STATIC", "REFERENCE_STATIC", "DYNAMIC"):
        _extend(getattr(quantization_mappings, f"DEFAULT_{kind}_QUANT_MODULE_MAPPINGS"))
    _extend(quantization_mappings.DEFAULT_QAT_MODULE_MAPPINGS)
    fusers: dict[Any, Any] = fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    for (first, *others), fuse in list(fusers.items()):
        if first in OURS:
            fusers[OURS[first], *others] = _fusing_ours(fuse)


def _extend(mapping: dict[Callable[..., Any], Any]) -> None:
    for torchs, ours in OURS.items():
        if torchs in mapping:
            mapping[ours] = _accepting_ours(mapping[torchs])
