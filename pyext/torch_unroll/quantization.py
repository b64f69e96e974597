"""torch.ao's eager quantisation of torch_unroll's modules: it looks modules up by their exact class, and finds these by what is
registered here.

Observers, quantisation-aware training, fusion and conversion then do what they do to torch's modules. `quantize_dynamic` has to
be given the class `torch_unroll.nn.RNNCell`, since its own list names torch's; the FX mode does not ask these tables at all:
`torch_unroll.restore` comes before it.
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
def _as_torchs(module: torch.nn.Module) -> Iterator[None]:
    """Makes the module one of torch's class for a while; torch.ao's functions accept no other."""
    kind = type(module)
    module.__class__ = TORCHS.get(kind, kind)
    try:
        yield
    finally:
        module.__class__ = kind


def _taking_ours(target: type[Any]) -> type[Any]:
    """What a mapping of torch.ao's leads to: it makes a `target`, of a module of torch_unroll's."""

    @functools.wraps(target.from_float)
    def from_float(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _as_torchs(module):
            return target.from_float(module, *args, **kwargs)

    return type(target.__name__, (target,), {"from_float": staticmethod(from_float)})


def _fusing_ours(fuse: Fuser) -> Fuser:
    """A function that fuses modules, of which the first is torch_unroll's: so is its convolution in what comes out."""

    @functools.wraps(fuse)
    def fused(is_qat: bool, first: torch.nn.Module, *others: torch.nn.Module) -> torch.nn.Module:
        with _as_torchs(first):
            result = fuse(is_qat, first, *others)
        for module in result.modules():
            if type(module) is TORCHS.get(type(first)):  # a copy that the folding of a normalisation made
                module.__class__ = type(first)
        return result

    return fused


@functools.cache
def register() -> None:
    """Enters torch_unroll's modules into the tables of `torch.ao.quantization`, if this torch still has them.

    `torch_unroll.replace` calls it, importing `torch_unroll` does not: importing `torch.ao.quantization` takes longer.
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
            mapping[ours] = _taking_ours(mapping[torchs])
