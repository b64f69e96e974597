"""Ceilings: the rates of copies and large matrix products that torch reaches on the device, and the least times of launches.

Every run measures them; the shares of the roofline in its report are relative to them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.cuda_timing import L2Flush, capture, estimate, measure
from benchmarks.names import DTYPES
from benchmarks.providers import Call
from benchmarks.timing import Limits, interleave, loop_sampler, summarize


def measure_ceilings(device: torch.device, limits: Limits, quick: bool = False) -> dict[str, Any]:
    """Measures copy bandwidth in GB/s (bytes read plus bytes written) and large matrix products in TFLOP/s by dtype.

    On a GPU it also measures the microseconds of a graph of one empty kernel, and those per kernel of a graph of 1000 such
    kernels. On a CPU, the products are in fp32 only, and smaller if `quick`.
    """
    if device.type != "cuda":
        return _bandwidth_and_products(device, 1 << 24, 512 if quick else 1024, {"fp32": torch.float32}, limits)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        ceilings = _bandwidth_and_products(device, 1 << 30, 8192, DTYPES, limits)
        ceilings["empty_graph_us"] = estimate(capture(_spin, 1), 100) * 1e6
        ceilings["empty_kernel_us"] = estimate(capture(_spin, 1000), 5) * 1e6 / 1000
    torch.cuda.synchronize()
    return ceilings


def _bandwidth_and_products(
    device: torch.device, elements: int, side: int, dtypes: dict[str, torch.dtype], limits: Limits
) -> dict[str, Any]:
    source = torch.zeros(elements, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = 2 * elements / _seconds(lambda: (target.copy_(source),), device, limits) / 1e9
    products: dict[str, float] = {}
    matmul: Any = torch.backends.cuda.matmul
    previous = matmul.fp32_precision
    for name, dtype in dtypes.items():
        a = torch.rand(side, side, device=device).to(dtype)
        matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        try:
            products[name] = 2 * side**3 / _seconds(partial(_square, a), device, limits) / 1e12
        finally:
            matmul.fp32_precision = previous
    return {"copy_gb_s": copy, "product_tflop_s": products}


def _square(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (a @ a,)


def _spin() -> tuple[torch.Tensor, ...]:
    """Launches an empty kernel."""
    torch.cuda._sleep(0)
    return ()


def _seconds(call: Call, device: torch.device, limits: Limits) -> float:
    if device.type == "cuda":
        return summarize(measure({"call": call}, L2Flush(device), limits).warm["call"]).median
    return summarize(interleave({"call": loop_sampler(call)}, limits)["call"]).median


def roofline_share(flops: int, bytes_: int, dtype: str, seconds: float, ceilings: dict[str, Any]) -> float | None:
    """The least time that the ceilings allow, divided by `seconds`; it is 1 for a call that runs at the roofline.

    None if a ceiling is unknown, or if `bytes_` or `seconds` is 0.
    """
    product = ceilings.get("product_tflop_s", {}).get(dtype)
    copy = ceilings.get("copy_gb_s")
    if not product or not copy or not bytes_ or seconds <= 0:
        return None
    return max(flops / (product * 1e12), bytes_ / (copy * 1e9)) / seconds
