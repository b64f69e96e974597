"""The results of a call on one of the sample inputs with which torch tests its own operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def _coarse(value: Tensor) -> Tensor:
    """The tensor rounded to eight significant bits. TF32 has more, so products of such numbers are equal in fp32 and TF32."""
    return value.detach().bfloat16().to(value.dtype)


def _leaves(arguments: Any, dtype: torch.dtype | None, coarse: bool) -> tuple[Any, list[Tensor]]:
    """The arguments, with each floating-point tensor replaced by a new autograd leaf, optionally of another dtype; and the
    leaves that require a gradient."""

    def renew(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        numbers = _coarse(value) if coarse else value.detach()
        return numbers.to(dtype or value.dtype).requires_grad_(value.requires_grad)

    renewed = tree_map(renew, arguments)
    return renewed, [leaf for leaf in tree_leaves(renewed) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _weighting(output: Tensor, coarse: bool) -> Tensor:
    """Fixed, unequal weights for the elements of an output."""
    # They do not add up to 0, since all of a bias gradient would then be a rounding error.
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64, device=output.device).view(output.shape)
    return (_coarse(weights) if coarse else weights).to(output.dtype)


def sample_results(
    function: Callable[..., Any],
    sample: Any,
    dtype: torch.dtype | None = None,
    *,
    coarse: bool = False,
    parameters: Iterable[Tensor] = (),
    **options: Any,
) -> list[Tensor]:
    """The outputs of a call, and the gradients of their weighted sum, with fixed weights, with respect to its inputs.

    Args:
        function: the function to call.
        sample: torch's `SampleInput`, with input, args and kwargs.
        dtype: the dtype of the floating-point inputs, if it is not that of the sample.
        coarse: whether inputs and weighting are rounded to numbers that TF32 can represent.
        parameters: further tensors with respect to which gradients are computed.
        options: further keyword arguments of the function.
    """
    (input, args, kwargs), leaves = _leaves((sample.input, sample.args, sample.kwargs), dtype, coarse)
    leaves += parameters
    outputs = [leaf for leaf in tree_leaves(function(input, *args, **kwargs, **options)) if isinstance(leaf, Tensor)]
    results = [output.detach() for output in outputs]
    if leaves:
        differentiable = [output for output in outputs if output.requires_grad]
        weightings = [_weighting(output, coarse) for output in differentiable]
        results += torch.autograd.grad(differentiable, leaves, weightings)
    return results


def raised(call: Callable[[], Any]) -> Exception | None:
    """The exception that a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None
