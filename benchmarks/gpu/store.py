"""The folder of a run. Each finished job is saved at once, so that the same command continues where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import ForeignError, differences, load, save

SCHEMA, VERSION = "torch-unroll-gpu", 1
#: A run continues only if these fields agree, so that results of different models of GPU or of different kernels
#: are never mixed.
IDENTITY = ("device", "device_type", "driver", "engine_digest", "torch", "seed")
#: The files of finished jobs by phase; `second.jsonl` belongs to `--then`.
LINES = ("checks.jsonl", "hardware.jsonl", "timings.jsonl", "second.jsonl")
#: With less free space, the output of jobs could be cut off.
LEAST_FREE_BYTES = 4 << 20
#: The size below which a file should stay, so that it can be committed or mailed. Within 1 MiB of it, jobs are saved without
#: their evidence.
MOST_BYTES = 16 << 20

Record = dict[str, Any]


class Store:
    """`run.json`, and the files of `LINES` with a line for each finished job.

    Raises:
        ForeignError: the folder holds a run that differs in a field of IDENTITY, or that was written by another version.
    """

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
        changed = differences(earlier["environment"], environment, IDENTITY)
        if changed:
            raise ForeignError(
                f"{self.folder}: holds another run ({'; '.join(changed)}); name another --out, or delete the folder"
            )
        self.run = earlier

    def done(self, name: str) -> dict[str, Record]:
        """The finished jobs of a file by key."""
        return {record["job"]: record for record in self.lines[name]}

    def add(self, name: str, record: Record) -> None:
        """Saves a finished job, without its evidence if the file would become too large.

        Raises:
            OSError: the disk is full; the job itself may have failed for this reason, so it is not recorded.
        """
        if shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            raise OSError(
                f"{self.folder}: the disk is full; finished jobs are kept: free some space, and the same command continues"
            )
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
        """Writes `run.json` atomically: a reader sees either the old or the new one."""
        save(self.run, self.folder / "run.json")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Locks a folder against other runs, and deletes the output that the jobs of a killed run left in it.

    Raises:
        ValueError: another run is at work in the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another run is at work in this folder; wait, or name another --out") from None
        for leftover in folder.glob(".jobs-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def load_run(folder: Path) -> Record:
    """Reads the `run.json` of a folder.

    Raises:
        ForeignError: it is not JSON, or has another schema or version.
    """
    return load(folder / "run.json", SCHEMA, VERSION)


def _read(path: Path) -> list[Record]:
    """Reads a file up to the first line that was cut off. Removes the rest from the file, so that its jobs are run again."""
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
