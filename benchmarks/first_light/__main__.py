"""Measures the GPU, and records golden data for the emulator. It needs a Hopper GPU and, unless the programs are built, nvcc."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.first_light import programs
from benchmarks.first_light.programs import MEASUREMENTS, ROOT, Outcome

SMI_FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,ecc.mode.current"


def nvidia_smi() -> dict[str, str]:
    """The fields that nvidia-smi reports for GPU 0; empty if nvidia-smi is missing, fails or takes more than 30 s."""
    smi = shutil.which("nvidia-smi")
    if not smi:
        return {}
    query = [smi, "-i", "0", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return {}
    if answer.returncode:
        return {}
    return dict(zip(SMI_FIELDS.split(","), (cell.strip() for cell in answer.stdout.split(",")), strict=False))


def commit() -> str | None:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_light",
        description=__doc__,
        epilog="To keep the results, copy the JSON file to benchmarks/results/, and golden/ to tests/emulator/golden/.",
    )
    names = ", ".join(dict.fromkeys(measurement.program for measurement in MEASUREMENTS))
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "first_light", help="folder of results (%(default)s)")
    parser.add_argument("--binaries", type=Path, default=ROOT / "build" / "first_light", help="folder of programs (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", help=f"only these programs, of {names}")
    parser.add_argument("--rebuild", action="store_true", help="compile even if the programs were built from these sources")
    parser.add_argument(
        "--build-only", action="store_true", help="only compile, for use on a machine with a GPU but without nvcc"
    )
    options = parser.parse_args()
    chosen = [measurement for measurement in MEASUREMENTS if not options.only or measurement.program in options.only]

    wanted = list(dict.fromkeys(measurement.program for measurement in chosen))
    build = wanted if options.rebuild else programs.stale(options.binaries, wanted)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if build and nvcc:
        for program, words in programs.build(nvcc, options.binaries, build).items():
            print(f"{program} does not compile:\n{words}", file=sys.stderr)
    elif options.rebuild or not all((options.binaries / program).exists() for program in wanted):
        sys.exit("first light needs nvcc: install the CUDA toolkit 12.4 or newer, or copy build/first_light from another machine")
    elif build:
        print(f"without nvcc, used although built from other sources: {', '.join(build)}", file=sys.stderr)
    if options.build_only:
        return 0

    outcomes: list[Outcome] = []
    for number, measurement in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {measurement.program} {measurement.name} ...", end=" ", flush=True)
        outcomes.append(programs.run(measurement, options.binaries))
        print(outcomes[-1].failure or f"{len(outcomes[-1].records)} results", flush=True)
        if outcomes[-1].failure and measurement == MEASUREMENTS[0]:
            sys.exit("no usable GPU: first light needs one of compute capability 9.0, and its driver")

    measured, golden = programs.split(outcomes)
    failures = {outcome.measurement.title: outcome.failure for outcome in outcomes if outcome.failure}
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "nvidia_smi": nvidia_smi(),
        "measurements": measured,
        "failures": failures,
    }
    path = options.output / "first_light.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    written = programs.write_golden(options.output / "golden", golden)
    print(programs.table(measured))
    print(f"\n{path}", *written, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
