"""What the search enters in the ops' tables of measurements, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.timing import summarize
from torch_unroll.kernels.planning import Configuration, selectors, table_path
from torch_unroll.kernels.table import OPS


def require_gpu(device: torch.device) -> None:
    """Raises ValueError on a CPU: only what a GPU has measured is entered in a table."""
    if device.type != "cuda":
        raise ValueError("--write: the table holds what a GPU has measured, and this search runs on the CPU, on emulated kernels")


def write(document: Mapping[str, Any]) -> str:
    """Enters the best configurations of a search in the tables; returns what was done, in words.

    Raises:
        ValueError: the search did not run on a GPU.
    """
    environment = document["environment"]
    if environment["device_type"] != "cuda":
        require_gpu(torch.device("cpu"))
    lines = []
    best = {row["key"]: row["best"] for row in document["problems"].values() if row.get("key") and row.get("best")}
    for op in OPS:
        functions = selectors(op)
        entries = {key: entry for key, entry in best.items() if key.partition("/")[0] in functions}
        if entries:
            path = table_path(op)
            devices = json.loads(path.read_text(encoding="utf-8"))["devices"]
            devices[environment["device"]] = {**devices.get(environment["device"], {}), **entries}
            path.write_text(text(devices), encoding="utf-8")
            lines.append(f"{len(entries)} entries of {environment['device']} written to {path}")
    return "\n".join(lines) or "no entries to write"


def text(devices: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of a table, with one entry a line."""
    parts = []
    for name, entries in sorted(devices.items()):
        lines = ",\n".join(f"      {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items()))
        parts.append(f"    {json.dumps(name)}: {{\n{lines}\n    }}")
    inside = "{\n" + ",\n".join(parts) + "\n  }" if parts else "{}"
    return f'{{\n  "devices": {inside}\n}}\n'


def summary(document: Mapping[str, Any]) -> str:
    """Returns how much faster the best configurations are than those the model selects, and what was wrong or failed."""
    rows = list(document["problems"].values())
    ratios = []
    for row in rows:
        model = row.get("us", {}).get(str(Configuration(*row["model"]))) if row.get("best") else None
        if model is not None:
            ratios.append(model / row["best"][-1])
    lines = [f"{sum(bool(row.get('best')) for row in rows)} of {len(rows)} cases have a best configuration"]
    if document["environment"]["device_type"] != "cuda":
        lines.append("a dry run: emulated kernels were timed by wall-clock time, which says nothing about a GPU")
    elif ratios:
        median = summarize(ratios).median
        lines.append(f"what the model selects takes {median:.2f} times as long in the median, {max(ratios):.2f} at most")
    lines += [f"wrong: {row['case']}: {name}: {why}" for row in rows for name, why in row.get("wrong", {}).items()]
    lines += [f"failed: {row['case']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)
