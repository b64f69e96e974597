"""Tests benchmarks/first_light: a program that hangs or faults does not affect other results, and all programs compile."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.first_light import __main__ as driver
from benchmarks.first_light import programs
from benchmarks.first_light.programs import MEASUREMENTS, Measurement, Outcome, parse, run, split, table, write_golden
from torch_unroll.kernels import build

ROOT = Path(__file__).resolve().parents[2]
GOLDEN_README = ROOT / "tests" / "emulator" / "golden" / "README.md"

#: Output as the programs print it, with made-up numbers; the last line is cut off, as if the program had been killed.
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
    """Returns a function that makes a program out of a shell script."""

    def make(script: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(("status", "expected"), [(0, {"name": "a GPU", "driver_version": "580"}), (9, {})])
def test_a_failing_nvidia_smi_is_not_read(
    program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, expected: dict[str, str]
) -> None:
    program(f"echo a GPU, 580; exit {status}")
    (tmp_path / "program").rename(tmp_path / "nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert driver.nvidia_smi() == expected


def test_whole_records_are_read_and_the_rest_is_left() -> None:
    names = [record["name"] for record in parse(SAID)]
    assert names == ["device", "cluster_barrier", "cluster_barrier", "golden_mma"]
    assert parse(SAID)[2]["gave_up"] is True


def test_golden_data_is_separated_from_measurements() -> None:
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
    """Kind of golden data -> the names of the fields that the programs print for it."""
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
    assert {measurement.program for measurement in MEASUREMENTS} == {path.stem for path in programs.HERE.glob("*.cu")}
    for measurement in MEASUREMENTS:
        assert f'{{"{measurement.name}", ' in (programs.HERE / f"{measurement.program}.cu").read_text()


def test_all_of_it_ends_within_ten_minutes_whatever_hangs() -> None:
    assert sum(measurement.seconds for measurement in MEASUREMENTS) <= 600


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake compiler that records the paths of its outputs, which are programs that print nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "nvcc"
    path.write_text(f"""#!/bin/sh
for word; do last=$word; done
echo "$last" >> {tmp_path}/compiled
printf '#!/bin/sh\\n' > "$last" && chmod +x "$last"
""")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return path


def first_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    """Builds the programs, and returns the names of those that were compiled."""
    listed = tmp_path / "compiled"
    listed.unlink(missing_ok=True)
    monkeypatch.setattr(sys, "argv", ["first_light", "--binaries", str(tmp_path / "binaries"), "--build-only", *options])
    assert driver.main() == 0
    return sorted(Path(line).name for line in listed.read_text().split()) if listed.exists() else []


PROGRAMS = sorted({measurement.program for measurement in MEASUREMENTS})


@pytest.mark.usefixtures("nvcc")
def test_programs_are_built_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_light(tmp_path, monkeypatch) == PROGRAMS
    assert first_light(tmp_path, monkeypatch) == []
    for path in (tmp_path / "binaries").iterdir():  # as in a copied tree, where dates mean nothing
        os.utime(path, (1, 1))
    assert first_light(tmp_path, monkeypatch) == []
    assert first_light(tmp_path, monkeypatch, "--rebuild") == PROGRAMS
    (tmp_path / "binaries" / "rates").unlink()
    assert first_light(tmp_path, monkeypatch) == ["rates"]
    (tmp_path / "binaries" / "device.sources").unlink()
    assert first_light(tmp_path, monkeypatch, "--only", "device", "rates") == ["device"]
    monkeypatch.setattr(programs, "sources_digest", lambda: "of other sources")
    assert first_light(tmp_path, monkeypatch, "--only", "exchange") == ["exchange"]
    assert first_light(tmp_path, monkeypatch) == [program for program in PROGRAMS if program != "exchange"]


def test_the_digest_is_of_every_source_and_of_no_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(programs.HERE, tmp_path / "copy")
    before = programs.sources_digest()
    monkeypatch.setattr(programs, "HERE", tmp_path / "copy")
    assert programs.sources_digest() == before
    for name in ("device.cu", "common.cuh", "hopper.cuh", "golden_tma.cu"):
        with (tmp_path / "copy" / name).open("a") as file:
            file.write("\n")
        after = programs.sources_digest()
        assert after != before
        before = after


def test_without_nvcc_existing_programs_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvcc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_light(tmp_path, monkeypatch)
    nvcc.unlink()
    monkeypatch.setattr(shutil, "which", lambda *names, **options: None)
    assert first_light(tmp_path, monkeypatch) == []
    assert not capsys.readouterr().err
    monkeypatch.setattr(programs, "sources_digest", lambda: "of other sources")
    assert first_light(tmp_path, monkeypatch) == []
    assert "used although built from other sources: device" in capsys.readouterr().err
    (tmp_path / "binaries" / "products").unlink()
    for options in ((), ("--rebuild", "--only", "device")):
        with pytest.raises(SystemExit, match="first light needs nvcc"):
            first_light(tmp_path, monkeypatch, *options)


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
