"""Result files: a JSON document with a versioned schema, and a journal of the finished cases while a run lasts.

README.md in this folder describes the schema.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = "torch-unroll-benchmarks"
VERSION = 1

#: The statuses of a provider whose result is right: measured, or checked only.
RIGHT = ("ok", "checked")

Document = dict[str, Any]
Row = dict[str, Any]

#: The fields of the environment that must agree for a run to be continued, for results to be merged in a report, and for two
#: results to be compared without a warning.
IDENTITY = ("device", "engine_digest", "commit", "torch", "cuda", "cudnn", "driver", "python")


class ForeignError(ValueError):
    """Raised for a file that was not written by this version, or that belongs to another run."""


def new(environment: dict[str, Any], command: str, seed: int) -> Document:
    """A new document without rows."""
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


def load(path: Path, schema: str = SCHEMA, version: int = VERSION) -> Document:
    """Reads a file with a versioned schema, which is that of result files unless stated otherwise.

    Raises:
        ForeignError: the file is not JSON, or has another schema or version.
    """
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ForeignError(f"{path}: not JSON ({error})") from error
    _check(document, path, schema, version)
    return document


def _check(document: Any, path: Path, schema: str, version: int) -> None:
    actual = (document.get("schema"), document.get("version")) if isinstance(document, dict) else (None, None)
    if actual != (schema, version):
        raise ForeignError(f"{path}: expected schema {schema} version {version}, got {actual[0]} version {actual[1]}")


def save(document: Document, path: Path) -> None:
    """Writes the file atomically: a reader sees either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str] = IDENTITY) -> list[str]:
    """The fields, among `names`, in which two environments differ, with both values."""
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in names if old.get(name) != new.get(name)]


class Journal:
    """The finished cases of a run, in the file `<out>.partial`.

    The first line is the document without rows. Each case adds one line when it begins, and its row when it ends.
    A case that has begun, and was neither ended nor stopped, is taken to have killed its process.
    """

    def __init__(self, out: Path):
        self.path = out.with_name(out.name + ".partial")

    def resume(self, document: Document) -> tuple[list[Row], str | None]:
        """Returns the rows of an interrupted run and the case that killed it, if one did, and keeps these rows in the journal.

        Raises:
            ForeignError: the journal has another schema or version, or is of a run with another seed or environment.
        """
        rows: list[Row] = []
        begun: str | None = None
        if self.path.exists():
            header, *entries = self._entries()
            changed = differences(header["environment"], document["environment"])
            if header["seed"] != document["seed"]:
                changed.append(f"seed: {header['seed']} → {document['seed']}")
            if changed:
                raise ForeignError(f"{self.path}: left by another run ({'; '.join(changed)}); delete it, or choose another --out")
            for entry in entries:
                begun = entry.get("begun")
                if "case" in entry:
                    rows.append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in ({**document, "rows": []}, *rows)))
        os.replace(temporary, self.path)
        return rows, begun

    def _entries(self) -> list[dict[str, Any]]:
        """The lines of the journal, which are JSON objects, the header first; an incomplete last line is left out."""
        try:
            header, *entries = list(_whole_lines(self.path.read_text().splitlines())) or [{}]
        except ValueError as error:
            raise ForeignError(f"{self.path}: not a journal ({error}); delete it, or choose another --out") from error
        _check(header, self.path, SCHEMA, VERSION)
        if not all(isinstance(entry, dict) for entry in entries) or not {"environment", "seed"} <= header.keys():
            raise ForeignError(f"{self.path}: not a journal; delete it, or choose another --out")
        return [header, *entries]

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def begin(self, case: str) -> None:
        """Records that a case begins."""
        self._append({"begun": case})

    def end(self, row: Row) -> None:
        """Records the row of a case that has ended; it is on disk when this returns."""
        self._append(row)

    def stop(self) -> None:
        """Records that the current case was interrupted, so that it is measured when the run continues."""
        self._append({"begun": None})

    def close(self) -> None:
        """Deletes the journal, once the run is complete and saved."""
        self.path.unlink(missing_ok=True)


def _whole_lines(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Parses the lines of a journal, except for an incomplete last one."""
    for i, line in enumerate(lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if i != len(lines) - 1:
                raise
