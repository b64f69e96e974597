"""Result files: a JSON document with a versioned schema, and beside it, while a run lasts, one line per finished case.

The schema is described in README.md here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = "torch-unroll-benchmarks"
VERSION = 1

Document = dict[str, Any]
Row = dict[str, Any]

#: What must agree for a run to be continued, and for two results to be compared without a warning.
IDENTITY = ("device", "engine_digest", "commit", "torch", "cuda", "cudnn", "driver", "python")


class ForeignError(ValueError):
    """A file that is not a result of this schema version."""


def new(environment: dict[str, Any], command: str, seed: int) -> Document:
    """A document without rows."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "command": command,
        "seed": seed,
        "environment": environment,
        "ceilings": {},
        "overheads": [],
        "rows": [],
        "left_out": [],
        "complete": False,
    }


def load(path: Path) -> Document:
    """Reads a result file, refusing one of another schema or version."""
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as problem:
        raise ForeignError(f"{path}: not JSON ({problem})") from problem
    _check(document, path)
    return document


def _check(document: Any, path: Path) -> None:
    schema, version = (document.get("schema"), document.get("version")) if isinstance(document, dict) else (None, None)
    if schema != SCHEMA or version != VERSION:
        raise ForeignError(f"{path}: expected schema {SCHEMA} version {VERSION}, got {schema} version {version}")


def save(document: Document, path: Path) -> None:
    """Writes the file as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In what the environments of two results differ, of what matters for comparing them."""
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in IDENTITY if old.get(name) != new.get(name)]


class Journal:
    """The cases of a run that is under way, in `<out>.partial`: the document without rows first, then a line as a case begins and
    its row as it ends. A case that began and did not end took the process with it."""

    def __init__(self, out: Path):
        self.path = out.with_name(out.name + ".partial")

    def resume(self, document: Document) -> tuple[list[Row], str | None]:
        """The rows that an interrupted run left, if it was this run on this machine, and the case it died in. The journal goes on
        with those rows."""
        rows: list[Row] = []
        begun: str | None = None
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            header = json.loads(lines[0]) if lines else {}
            _check(header, self.path)
            changed = differences(header["environment"], document["environment"])
            if header["seed"] != document["seed"]:
                changed.append(f"seed: {header['seed']} → {document['seed']}")
            if changed:
                raise ForeignError(f"{self.path}: left by another run ({'; '.join(changed)}); delete it, or name another --out")
            for entry in _whole_lines(lines[1:]):
                begun = entry.get("begun")
                if "case" in entry:
                    rows.append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text("".join(json.dumps(each, allow_nan=False) + "\n" for each in ({**document, "rows": []}, *rows)))
        os.replace(temporary, self.path)
        return rows, begun

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def begin(self, case: str) -> None:
        """A case begins."""
        self._append({"begun": case})

    def end(self, row: Row) -> None:
        """A case has ended; its row is on disk when this returns."""
        self._append(row)

    def stop(self) -> None:
        """The case that began was stopped from outside, and is to be measured when the run goes on."""
        self._append({"begun": None})

    def close(self) -> None:
        """The run is complete and saved elsewhere."""
        self.path.unlink(missing_ok=True)


def _whole_lines(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of a journal, without a last one that was cut off."""
    for i, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if i != len(lines) - 1:
                raise
