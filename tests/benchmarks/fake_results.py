"""Cases and results that are made up."""

from __future__ import annotations

from typing import Any

from benchmarks import results, runner
from benchmarks.cases import Case
from benchmarks.ops import OPERATIONS
from benchmarks.ops.conv2d import WindowShape
from benchmarks.timing import Summary


def case(**changes: int) -> Case:
    shape = WindowShape(**{"N": 1, "C": 3, "H": 6, "W": 6, "K": 4, "R": 3, "S": 3, **changes})
    return Case(OPERATIONS["conv2d"], "fprop", "fp32", "nchw", shape)


def fake_row(measured: Case, median: float = 10.0, status: str = "ok", provider: str = "torch") -> results.Row:
    """The row of a case that took `median` microseconds, half of the time of eager torch."""
    ours = Summary(median, median * 0.99, median * 1.01, 10).as_json()
    theirs = Summary(2 * median, 1.98 * median, 2.02 * median, 10).as_json()
    timed = {"warm": ours} if status == "ok" else {}
    return {
        **runner.failed(measured, status, RuntimeError()),
        "message": "",
        "flops": measured.flops,
        "bytes": measured.bytes,
        "suites": ["lenet5"],
        "labels": ["lenet5: c1"],
        "providers": {
            provider: {"status": status, "message": "" if status == "ok" else "why", "peak_bytes": 2_000_000, **timed},
            "eager": {"status": "ok", "message": "", "peak_bytes": 1_000_000, "warm": theirs},
        },
        "ratios": {f"{provider}/eager": {"warm": Summary(2.0, 1.9, 2.1, 10).as_json()}} if timed else {},
    }


def fake_document(*rows: results.Row, **environment: Any) -> results.Document:
    described = {
        "device": "H999",
        "device_type": "cuda",
        "time": "2026-01-01T00:00:00+00:00",
        "torch": "2",
        "commit": "abc",
        **environment,
    }
    ceilings = {"copy_gb_s": 4000.0, "product_tflop_s": {"fp32": 50.0}, "empty_graph_us": 2.5}
    overheads = [{"op": "conv2d", "direction": "fprop", "provider": "torch", "us": 5.0, "case": "c"}]
    document = results.new(described, "python -m benchmarks run", 0)
    return {**document, "rows": list(rows), "ceilings": ceilings, "overheads": overheads, "complete": True}
