"""What the device can do at most, measured in the same run: the denominators of every share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.cuda_timing import L2Flush, capture, estimate, measure
from benchmarks.ops.operation import Call
from benchmarks.timing import Limits, interleave, loop_sampler, summarize


def measure_ceilings(device: torch.device, limits: Limits, quick: bool = False) -> dict[str, Any]:
    """Copy bandwidth in GB/s (bytes read and written), large matrix products in TFLOP/s by dtype; on a GPU the time of a graph
    with one empty kernel."""
    on_gpu = device.type == "cuda"
    elements, side = (1 << 30, 8192) if on_gpu else (1 << 24, 512 if quick else 1024)
    source = torch.empty(elements, dtype=torch.int8, device=device).zero_()
    target = torch.empty_like(source)
    ceilings: dict[str, Any] = {"copy_gb_s": 2 * elements / _seconds(lambda: (target.copy_(source),), device, limits) / 1e9}
    products: dict[str, float] = {}
    matmul: Any = torch.backends.cuda.matmul
    allowed = matmul.fp32_precision
    for name, dtype in _products(on_gpu).items():
        a = torch.rand(side, side, device=device).to(dtype)
        matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        try:
            products[name] = 2 * side**3 / _seconds(partial(_square, a), device, limits) / 1e12
        finally:
            matmul.fp32_precision = allowed
    ceilings["product_tflop_s"] = products
    if on_gpu:
        ceilings["empty_graph_us"] = estimate(capture(_spin, 1), 100) * 1e6
        ceilings["empty_kernel_us"] = estimate(capture(_spin, 1000), 5) * 1e6 / 1000
    return ceilings


def _square(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (a @ a,)


def _spin() -> tuple[torch.Tensor, ...]:
    """One empty kernel."""
    torch.cuda._sleep(0)
    return ()


def _products(on_gpu: bool) -> dict[str, torch.dtype]:
    if not on_gpu:
        return {"fp32": torch.float32}
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32, "fp64": torch.float64}


def _seconds(call: Call, device: torch.device, limits: Limits) -> float:
    if device.type == "cuda":
        return summarize(measure({"it": call}, L2Flush(device), limits).warm["it"]).median
    return summarize(interleave({"it": loop_sampler(call)}, limits)["it"]).median


def roofline_share(flops: int, bytes_: int, dtype: str, seconds: float, ceilings: dict[str, Any]) -> float | None:
    """The time the ceilings allow over the time it took: 1 is the roofline. None where a ceiling was not measured."""
    product = ceilings.get("product_tflop_s", {}).get(dtype)
    copy = ceilings.get("copy_gb_s")
    if not product or not copy or not bytes_ or seconds <= 0:
        return None
    return max(flops / (product * 1e12), bytes_ / (copy * 1e9)) / seconds
