"""The outcome of a job, from the events that it printed and from how its process ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.isolation import Outcome

#: From worst to best. A job is "left" if the time was over before it ended, and "missing" if its engine or tool cannot run here.
SEVERITY = ("hung", "crashed", "lost", "failed", "wrong", "unsteady", "error", "left", "missing", "right")
#: The outcomes that are failures.
BAD = SEVERITY[:7]
_LONGEST_OUTPUT = 4000
#: The beginning of faulthandler's message when a time limit has passed.
_TIMEOUT = "Timeout ("

Record = dict[str, Any]


def read(key: str, output: Path, process: Outcome) -> Record:
    """The record of a job: how it ended, what it reported, the cases that failed, and the kernels that its cases launched."""
    record: Record = {"job": key, "outcome": "right", "detail": "", "seconds": round(process.seconds, 2), "cases": []}
    counts, refusals, rows = Counter[str](), Counter[str](), set[str]()
    begun: Record | None = None
    last, doing = None, ""
    for event in events(output):
        kind = event.pop("event")
        rows.update(event.pop("rows", ()))
        if kind == "begin":
            begun, last = event["case"], event["number"]
        elif kind == "good":
            begun = None
            counts[event["outcome"]] += 1
            refusals.update([event["detail"]] if event["outcome"] == "refused" else [])
        elif kind == "missing":
            return record | {"outcome": "missing", "detail": event["detail"]}
        elif kind == "end":
            begun = None
        elif kind == "result":
            record |= event
        elif kind == "doing":
            doing = f", {event['detail']}"
        elif kind == "verdict":  # from a job without cases
            record |= event
        elif kind == "lost":
            record["outcome"] = "lost"
        else:
            record["cases"].append({"outcome": kind, **event})
            counts[kind] += 1
            begun = None
    if last is not None:
        record |= {"counts": dict(counts), "refusals": dict(refusals), "rows": sorted(rows)}
    if process.kind in ("hung", "crashed", "failed"):
        lost = record["outcome"] == "lost"
        hung = begun is not None and _TIMEOUT in end(output)
        outcome = "lost" if lost else "hung" if hung else process.kind
        detail = record["cases"][-1]["detail"] if lost else "a case did not end" if hung else process.detail + doing
        if begun is not None:
            record["cases"].append({"outcome": outcome, "case": begun, "detail": process.detail, "evidence": []})
        record |= {"outcome": outcome, "detail": detail, "died_in": last, "output": end(output)}
    elif process.kind == "stopped":
        record |= {"outcome": "left", "detail": process.detail}
    elif record["cases"]:
        record |= worst(record["cases"])
    return record


def worst(cases: Sequence[Record]) -> Record:
    """The worst outcome among some cases, with its detail."""
    case = min(cases, key=lambda case: SEVERITY.index(case["outcome"]))
    return {"outcome": case["outcome"], "detail": case["detail"]}


def events(output: Path) -> Iterator[Record]:
    """The events in the output of a job, except lines that were cut off."""
    if not output.exists():
        return
    for line in output.read_text(errors="backslashreplace").splitlines():
        if line.startswith('{"event"'):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def end(output: Path, most: int = _LONGEST_OUTPUT) -> str:
    """The last `most` characters of the output without its events, such as a traceback or a message of the driver."""
    if not output.exists():
        return ""
    lines = output.read_text(errors="backslashreplace").splitlines()
    return "\n".join(line for line in lines if not line.startswith('{"event"'))[-most:]
