"""What came of a job: read from what it printed, and from how its process ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.isolation import Outcome

#: The worst first. "left" is a job that the time did not reach; "missing" one whose engine cannot run here.
SEVERITY = ("hung", "crashed", "lost", "failed", "wrong", "unsteady", "error", "left", "missing", "right")
#: What a reader has to look at.
BAD = SEVERITY[:7]
_LONGEST_OUTPUT = 2000

Record = dict[str, Any]


def read(key: str, output: Path, process: Outcome) -> Record:
    """A job's record: how it ended, its cases that were not right, and the kernels that it launched."""
    record: Record = {"job": key, "outcome": "right", "detail": "", "seconds": round(process.seconds, 2), "cases": []}
    begun: Record | None = None
    last, doing = None, ""
    for event in events(output):
        kind = event.pop("event")
        if kind == "begin":
            begun, last = event["case"], event["number"]
        elif kind == "missing":
            return record | {"outcome": "missing", "detail": event["detail"]}
        elif kind == "end":
            begun = None
            record |= event
        elif kind == "result":
            record |= event
        elif kind == "doing":
            doing = f", {event['detail']}"
        elif kind == "lost":
            record["outcome"] = "lost"
        else:
            record["cases"].append({"outcome": kind, **event})
            begun = None
    if process.kind in ("hung", "crashed", "failed"):
        outcome = "lost" if record["outcome"] == "lost" else process.kind
        if begun is not None:
            record["cases"].append({"outcome": outcome, "case": begun, "detail": process.detail, "evidence": []})
        record |= {"outcome": outcome, "detail": process.detail + doing, "died_in": last, "output": _end(output)}
    elif process.kind == "stopped":
        record |= {"outcome": "left", "detail": process.detail}
    elif record["cases"]:
        record["outcome"] = min((case["outcome"] for case in record["cases"]), key=SEVERITY.index)
        record["detail"] = record["cases"][0]["detail"]
    return record


def events(output: Path) -> Iterator[Record]:
    """The events among the lines of an output; the last may have been cut off."""
    if not output.exists():
        return
    for line in output.read_text(errors="backslashreplace").splitlines():
        if line.startswith('{"event"'):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _end(output: Path) -> str:
    """The last that a process said beside its events: a traceback, the driver's words."""
    if not output.exists():
        return ""
    lines = output.read_text(errors="backslashreplace").splitlines()
    return "\n".join(line for line in lines if not line.startswith('{"event"'))[-_LONGEST_OUTPUT:]
