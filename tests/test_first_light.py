"""First light: that its driver loses nothing to a program that hangs or faults, and that its programs compile."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.first_light import programs
from benchmarks.first_light.programs import MEASUREMENTS, Measurement, Outcome, parse, run, split, table, write_golden
from torch_unroll.kernels import build

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_README = ROOT / "tests" / "emulator" / "golden" / "README.md"

#: As the programs print, with made-up numbers; the last line is cut off, as by a kill.
SAID = """\
{"name": "device", "gpu": "a GPU", "capability": "9.0", "driver": 13000, "l2_bytes": 1024}
a warning that some library printed
{"name": "cluster_barrier", "blocks": 8, "threads": 128, "cycles": 1.5, "nanoseconds": 1.0, "gave_up": false}
{"name": "cluster_barrier", "blocks": 16, "threads": 128, "cycles": 2.5, "nanoseconds": 2.0, "gave_up": true}
{"name": "golden_mma", "instruction": "m16n8k8 tf32", "a": "00000000", "b": "3f800000", "c": "00", "d": "00"}
[1, 2]
{"cycles": 3}
{"name": "cluster_barrier", "blocks": 2, "thr"""


@pytest.fixture
def program(tmp_path: Path):
    """Makes a program out of a shell script."""

    def make(script: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def test_whole_records_are_read_and_the_rest_is_left() -> None:
    names = [record["name"] for record in parse(SAID)]
    assert names == ["device", "cluster_barrier", "cluster_barrier", "golden_mma"]
    assert parse(SAID)[2]["gave_up"] is True


def test_golden_data_is_told_from_measurements() -> None:
    measured, golden = split([Outcome(MEASUREMENTS[0], parse(SAID)), Outcome(MEASUREMENTS[1], failure="no end within 60 s")])
    assert [record["name"] for record in measured] == ["device", "cluster_barrier", "cluster_barrier"]
    assert golden == {"mma": [{"instruction": "m16n8k8 tf32", "a": "00000000", "b": "3f800000", "c": "00", "d": "00"}]}


def test_a_program_that_hangs_keeps_what_it_said(program, tmp_path: Path) -> None:
    program('echo \'{"name": "first", "cycles": 1}\'; sleep 600 & wait')
    outcome = run(Measurement("program", "all", seconds=1), tmp_path)
    assert outcome.records == [{"name": "first", "cycles": 1}]
    assert outcome.failure == "no end within 1 s"


def test_a_program_that_faults_keeps_what_it_said(program, tmp_path: Path) -> None:
    program("echo '{\"name\": \"first\"}'; echo 'an illegal memory access' >&2; exit 3")
    outcome = run(Measurement("program", "all"), tmp_path)
    assert outcome.records == [{"name": "first"}]
    assert outcome.failure == "exit status 3: an illegal memory access"


def test_a_program_that_is_not_there_is_a_failure_of_its_own(tmp_path: Path) -> None:
    assert "did not start" in run(Measurement("absent", "all"), tmp_path).failure


def test_the_tables_show_every_record() -> None:
    shown = table(parse(SAID)[:3])
    assert re.search(r"device\n  gpu: a GPU\n", shown)
    assert re.search(r"blocks +threads +cycles +nanoseconds +gave_up\n +8 +128 +1\.5 +1\.0 +False\n +16 ", shown)


def test_golden_files_are_the_same_bytes_for_the_same_cases(tmp_path: Path) -> None:
    cases = {"mma": [{"a": "00"}, {"a": "01"}]}
    (first,) = write_golden(tmp_path / "first", cases)
    (second,) = write_golden(tmp_path / "second", cases)
    assert first.read_bytes() == second.read_bytes()
    assert [json.loads(line) for line in gzip.decompress(first.read_bytes()).splitlines()] == cases["mma"]


def emitted() -> dict[str, set[str]]:
    """What each golden kind is emitted with: the names before every value of its format."""
    kinds: dict[str, set[str]] = {}
    for path in programs.HERE.glob("golden_*.cu"):
        for kind, format_ in re.findall(r'emit\(\s*"golden_(\w+)",\s*((?:"(?:[^"\\]|\\.)*"\s*)+)', path.read_text()):
            kinds[kind] = set(re.findall(r'\\"(\w+)\\":', format_))
    return kinds


def test_the_golden_format_is_documented() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", GOLDEN_README.read_text(), re.MULTILINE))
    kinds = emitted()
    assert kinds.keys() == documented.keys()
    for kind, fields in kinds.items():
        assert {field for field in fields if f"`{field}`" not in documented[kind]} == set()


def test_every_program_is_run_and_every_measurement_exists() -> None:
    assert {each.program for each in MEASUREMENTS} == {path.stem for path in programs.HERE.glob("*.cu")}
    for measurement in MEASUREMENTS:
        assert f'{{"{measurement.name}", ' in (programs.HERE / f"{measurement.program}.cu").read_text()


def test_all_of_it_ends_within_ten_minutes_whatever_hangs() -> None:
    assert sum(each.seconds for each in MEASUREMENTS) <= 600


def test_it_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import benchmarks.first_light.__main__"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.compile
@pytest.mark.parametrize("source", sorted(path.name for path in programs.HERE.glob("*.cu")))
def test_the_programs_compile_for_hopper(source: str, tmp_path: Path) -> None:
    if lack := build.cuda_lack():
        if os.environ.get("CI") == "true":
            pytest.fail(f"nvcc must be there in CI: {lack}")
        pytest.skip(lack)
    command = programs.compile_command(build.find_nvcc(), programs.HERE / source, tmp_path / "program")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
