"""The folder of a run: what it is of, and each finished job on disk at once, so that the same command goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import ForeignError

SCHEMA, VERSION = "torch-unroll-gpu", 1
#: What must agree for a run to go on: results of another card or other kernels are never mixed.
IDENTITY = ("device", "device_type", "driver", "engine_digest", "torch", "seed")
#: By phase; `second.jsonl` is what `--then` found.
LINES = ("checks.jsonl", "hardware.jsonl", "timings.jsonl", "second.jsonl")
#: Without so much, what jobs print is cut off.
LEAST_FREE_BYTES = 4 << 20
#: A file that a person may want to commit or mail.
MOST_BYTES = 16 << 20

Record = dict[str, Any]


class Store:
    """`run.json` and, a line for each finished job, the files of `LINES`."""

    def __init__(self, folder: Path, environment: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.run: Record = {"schema": SCHEMA, "version": VERSION, "environment": dict(environment), "phases": []}
        if (folder / "run.json").exists():
            self._resume(environment)
        self.write_run()
        self.lines = {name: _read(folder / name) for name in LINES}

    def _resume(self, environment: Mapping[str, Any]) -> None:
        earlier = load_run(self.folder)
        changed = [
            f"{name}: {earlier['environment'].get(name)} → {environment.get(name)}"
            for name in IDENTITY
            if earlier["environment"].get(name) != environment.get(name)
        ]
        if changed:
            raise ForeignError(
                f"{self.folder}: holds another run ({'; '.join(changed)}); name another --out, or delete the folder"
            )
        self.run = earlier

    def done(self, name: str) -> dict[str, Record]:
        """The finished jobs of a file, by key."""
        return {record["job"]: record for record in self.lines[name]}

    def add(self, name: str, record: Record) -> None:
        """Puts a finished job on disk. A file that is full takes no more evidence, only outcomes.

        Raises:
            OSError: the disk is full, of which the job itself may have died.
        """
        if shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            raise OSError(f"{self.folder}: the disk is full; what is finished is kept: make room, and the same command goes on")
        path = self.folder / name
        line = json.dumps(record) + "\n"
        if (path.stat().st_size if path.exists() else 0) + len(line) > MOST_BYTES - (1 << 20):
            bare = [{**case, "evidence": []} for case in record.get("cases", ())]
            line = json.dumps({**record, "cases": bare, "full": "the file had no room for evidence"}) + "\n"
        with path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.lines[name].append(record)

    def write_run(self) -> None:
        """`run.json` as a whole: a reader sees the old one or the new one."""
        temporary = self.folder / "run.json.new"
        temporary.write_text(json.dumps(self.run, indent=1) + "\n")
        os.replace(temporary, self.folder / "run.json")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder.

    Raises:
        ValueError: another run is at work in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another run is at work in this folder; wait, or name another --out") from None
        for leftover in folder.glob(".jobs-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def load_run(folder: Path) -> Record:
    """The `run.json` of a folder."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ForeignError(f"{path}: not JSON ({error})") from error
    if not isinstance(run, dict) or (run.get("schema"), run.get("version")) != (SCHEMA, VERSION):
        raise ForeignError(f"{path}: expected schema {SCHEMA} version {VERSION}")
    return run


def _read(path: Path) -> list[Record]:
    """The whole lines of a file. A line that was cut off, by a full disk or a power cut, is taken out: its job is run again."""
    if not path.exists():
        return []
    records: list[Record] = []
    whole = 0
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        records.append(record)
        whole += len(line)
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return records
