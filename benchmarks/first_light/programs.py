"""Builds the programs of first light, runs one measurement at a time, and parses the results. It needs no torch."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = ("-gencode", "arch=compute_90a,code=sm_90a")
#: The prefix of the names under which programs emit golden data rather than measurements.
GOLDEN = "golden_"

Record = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One run of one program, in a separate process, so that a hang or a fault affects no other measurement."""

    program: str
    name: str
    seconds: int = 27  # the limit; all measurements together take at most about ten minutes

    @property
    def title(self) -> str:
        return f"{self.program} {self.name}"

    def command(self, binaries: Path) -> list[str]:
        return [str(binaries / self.program), self.name]


MEASUREMENTS = (
    Measurement("device", "properties"),
    Measurement("device", "clusters"),
    Measurement("device", "clock"),
    Measurement("rates", "copies"),
    Measurement("rates", "l2_broadcast"),
    Measurement("rates", "matrices"),
    Measurement("launches", "host"),
    Measurement("launches", "graphs"),
    Measurement("launches", "cooperative"),
    Measurement("exchange", "barriers"),
    Measurement("exchange", "hand_off"),
    Measurement("exchange", "gather_in_clusters"),
    Measurement("exchange", "gather_l2"),
    Measurement("products", "mma"),
    Measurement("products", "wgmma"),
    Measurement("golden_tma", "im2col"),
    Measurement("golden_tma", "tiled"),
    Measurement("golden_tma", "tf32"),
    Measurement("golden_wgmma", "descriptors"),
    Measurement("golden_warp", "mma"),
    Measurement("golden_warp", "matrices"),
    Measurement("golden_warp", "tf32"),
)


@dataclass(frozen=True)
class Outcome:
    """The records of a measurement and, if it failed, the reason, else None."""

    measurement: Measurement
    records: list[Record] = field(default_factory=list)
    failure: str | None = None


def compile_command(nvcc: str, source: Path, output: Path) -> list[str]:
    include = ROOT / "kernels" / "cuda"
    return [nvcc, "-std=c++20", "-O3", *TARGET, f"-I{include}", "--Werror=all-warnings", str(source), "-o", str(output)]


def sources_digest() -> str:
    """A digest of the sources of all programs, with the platform headers of the kernels, and of the target.

    File dates are not compared, because they change when a tree is copied.
    """
    sources = [*HERE.glob("*.cu"), *HERE.glob("*.cuh"), *(ROOT / "kernels" / "cuda" / "platform").glob("*.h")]
    digest = hashlib.sha256(" ".join(TARGET).encode())
    for path in sorted(sources, key=lambda path: path.name):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def digest_file(binaries: Path, program: str) -> Path:
    """The file that records the digest of the sources from which a program was built."""
    return binaries / f"{program}.sources"


def stale(binaries: Path, chosen: Iterable[str]) -> list[str]:
    """The programs that are missing, or whose recorded digest is missing or differs from that of the sources."""
    digest = sources_digest()
    return [
        program
        for program in chosen
        if not (binaries / program).exists()
        or not (recorded := digest_file(binaries, program)).exists()
        or recorded.read_text().strip() != digest
    ]


def build(nvcc: str, binaries: Path, chosen: Iterable[str]) -> dict[str, str]:
    """Compiles programs. Records the digest of the sources for those that compile; returns the compiler's output for others."""
    binaries.mkdir(parents=True, exist_ok=True)
    digest = sources_digest()
    jobs: dict[str, subprocess.Popen[str]] = {}
    for program in chosen:
        output = binaries / program
        digest_file(binaries, program).unlink(missing_ok=True)
        command = compile_command(nvcc, HERE / f"{program}.cu", output)
        jobs[program] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if len(jobs) % (os.cpu_count() or 1) == 0:
            jobs[program].wait()
    outputs = {program: job.communicate()[0] for program, job in jobs.items()}
    for program, job in jobs.items():
        if not job.returncode:
            digest_file(binaries, program).write_text(digest + "\n")
    return {program: outputs[program] for program, job in jobs.items() if job.returncode}


def run(measurement: Measurement, binaries: Path) -> Outcome:
    """Runs one measurement. A program that exceeds its limit is killed with its children; the records it had printed are kept."""
    command = measurement.command(binaries)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        return Outcome(measurement, failure=f"did not start: {error}")
    try:
        output, errors = process.communicate(timeout=measurement.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = ""
        with suppress(subprocess.TimeoutExpired):  # if a child in another session holds the pipe, the records are lost
            output, _ = process.communicate(timeout=10)
        return Outcome(measurement, parse(output), f"no end within {measurement.seconds} s")
    failure = f"exit status {process.returncode}: {errors.strip()[-500:]}" if process.returncode else None
    return Outcome(measurement, parse(output), failure)


def parse(output: str) -> list[Record]:
    """The records in the output of a program, which are the lines that are complete JSON objects with a name."""
    records = []
    for line in output.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("name"), str):
            records.append(record)
    return records


def split(outcomes: Iterable[Outcome]) -> tuple[list[Record], dict[str, list[Record]]]:
    """Separates the records into measurements, in order, and golden data by kind."""
    measured: list[Record] = []
    golden: dict[str, list[Record]] = {}
    for outcome in outcomes:
        for record in outcome.records:
            if record["name"].startswith(GOLDEN):
                kind = record["name"].removeprefix(GOLDEN)
                golden.setdefault(kind, []).append({key: value for key, value in record.items() if key != "name"})
            else:
                measured.append(record)
    return measured, golden


def write_golden(directory: Path, golden: dict[str, list[Record]]) -> list[Path]:
    """Writes a file per kind with a case per line; the same cases give the same bytes (see tests/emulator/golden/README.md)."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, cases in golden.items():
        path = directory / f"{kind}.jsonl.gz"
        text = "".join(json.dumps(case) + "\n" for case in cases)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        paths.append(path)
    return paths


def table(records: Sequence[Record]) -> str:
    """Measurements as text: a table for each name, or a line for each field if the name has one record only."""
    lines = []
    for name in dict.fromkeys(record["name"] for record in records):
        rows = [{key: value for key, value in record.items() if key != "name"} for record in records if record["name"] == name]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", name]
        if len(rows) == 1:
            lines += [f"  {column}: {rows[0][column]}" for column in columns]
            continue
        cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        lines += ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(lines)
