"""Builds the kernel table into a shared object with the C interface of `cuda/launch.cu`: by nvcc for a GPU, or by g++ against
the emulator's stand-in headers (`tests/emulator`) for a machine without one. Needs neither torch nor setuptools.

    python kernels/build.py cuda|emulated [--mode plain|race|coverage] [--op conv2d] [--output PATH] [--optional] [-j N]

`MAX_JOBS`, `CUDA_HOME` and `TORCH_CUDA_ARCH_LIST` mean what they mean to torch's own extension builder.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "kernels"

from . import SOURCES, environment
from .table import OPS, Kernel, instance_source, interface_source, kernels

ROOT = SOURCES.parents[1]
BUILD = ROOT / "build"
LIBRARIES = ROOT / "pyext" / "torch_unroll" / "lib"
EMULATOR = ROOT / "tests" / "emulator"
MODES = ("plain", "race", "coverage")

_DEFAULT_ARCHITECTURES = "8.0+PTX 9.0a"
_CUDA_FLAGS = (
    "-std=c++20 -O3 -lineinfo --compiler-options=-fPIC,-fvisibility=hidden --cudart=static "
    "-Xfatbin=-compress-all "  # a sixth of the size, and unlike --compress-mode understood by every driver for CUDA 12
    "-Xptxas=-v "  # see _ninja_file's remarks
    "--expt-relaxed-constexpr -Werror=cross-execution-space-call"
).split()
# Contraction is off, so that a product and a sum round as written on every host: kernels write fmaf where they mean it.
_HOST_FLAGS = (
    "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -fno-exceptions "
    "-Wall -Wno-unknown-pragmas"
).split()
_MODE_FLAGS = {
    "plain": [],
    # Every access calls __tsan_read or __tsan_write, which are the emulator's own (runtime/race.cpp), not libtsan's.
    "race": ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1"],
    "coverage": ["--coverage", "-O1", "-fprofile-abs-path"],
}


class BuildError(RuntimeError):
    """What is missing or wrong, and what to do about it, in one sentence."""


@dataclass(frozen=True)
class Step:
    """One compilation: a generated or written source, its object, and the command without both."""

    source: Path
    object: Path
    command: tuple[str, ...]


def library_path(toolchain: str, mode: str = "plain") -> Path:
    """Where the object of every op is put: the two that engines load are package data, the others are for tests."""
    name = f"libtorch_unroll_{toolchain}" + ("" if mode == "plain" else f"_{mode}")
    return (LIBRARIES if mode == "plain" else BUILD) / f"{name}.so"


def directory_name(toolchain: str, mode: str = "plain") -> str:
    """Of the folder under build/ that holds the intermediate files; those of different GPU targets do not evict each other."""
    return f"{toolchain}-{'_'.join(cuda_targets()) if toolchain == 'cuda' else mode}"


def build(
    toolchain: str,
    rows: Iterable[Kernel],
    output: Path,
    *,
    mode: str = "plain",
    directory: Path | None = None,
    include: Sequence[Path] = (),
    jobs: int | None = None,
) -> Path:
    """Compiles rows of a kernel table into the shared object `output`, incrementally, in `directory`; returns `output`.

    Args:
        toolchain: "cuda" or "emulated".
        mode: of "emulated": "plain"; "race", which sees every access; "coverage", which counts lines for gcov.
        include: folders searched for the rows' sources before `kernels/cuda`.

    Raises:
        BuildError: a tool is missing or too old (the message says the remedy), or a source does not compile.
    """
    directory = directory or BUILD / directory_name(toolchain, mode)
    (directory / "generated").mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:  # two builds of one folder wait for each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        instances = list(_write_instances(rows, directory / "generated"))
        folders = [f"-I{folder}" for folder in (*include, SOURCES)]
        if toolchain == "cuda":
            steps, link = _cuda_steps(instances, directory, folders)
        else:
            steps, link = _emulated_steps(instances, directory, folders, mode)
        _write_if_changed(directory / "build.ninja", _ninja_file(steps, link, output, remarks=toolchain == "cuda"))
        jobs = jobs or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        command = [find_ninja(), "-C", str(directory), f"-j{jobs}", "--quiet"]
        if subprocess.run(command).returncode:
            raise BuildError(f"the {toolchain} kernels do not compile; the compiler's own message stands above")
    return output


def _write_instances(rows: Iterable[Kernel], directory: Path) -> Iterator[tuple[Path, str]]:
    """A file for each source and architecture and one for the C interface, rewritten only on a change: (path, architecture)."""
    groups: defaultdict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for row in rows:
        groups[row.source, row.architecture].append(row)
    for (source, architecture), group in groups.items():
        path = directory / f"{source.removesuffix('.cuh').replace('/', '_')}_{architecture}.cu"
        _write_if_changed(path, instance_source(group))
        yield path, architecture
    path = directory / "interface.cu"
    _write_if_changed(path, interface_source())
    yield path, "80"


def _cuda_steps(instances: list[tuple[Path, str]], directory: Path, folders: list[str]) -> tuple[list[Step], list[str]]:
    nvcc = find_nvcc()
    targets = cuda_targets()
    instances = [*instances, (SOURCES / "launch.cu", "80")]
    steps = []
    for source, architecture in instances:
        codes = [flag for target in targets for flag in _gencode(target, architecture)]
        if codes:
            command = (nvcc, *_CUDA_FLAGS, *folders, *codes, "-c")
            steps.append(Step(source, directory / f"{source.stem}.o", command))
    # Without code for some GPU of its own the linker would add a default one.
    return steps, [nvcc, "--shared", "--cudart=static", *_gencode(targets[0], "80")]


def _emulated_steps(
    instances: list[tuple[Path, str]], directory: Path, folders: list[str], mode: str
) -> tuple[list[Step], list[str]]:
    compiler = find_host_compiler()
    flags = [*_HOST_FLAGS, *_host_architecture()]
    # Force-included, as nvcc does with its own cuda_runtime.h.
    stand_ins = [f"-I{EMULATOR / 'include'}", *folders, "-include", "cuda_runtime.h"]
    runtime = [f"-I{EMULATOR / 'include'}", f"-I{SOURCES}", f"-DEMULATOR_{mode.upper()}"]
    steps = [
        Step(source, directory / f"{source.stem}.o", (compiler, *flags, *_MODE_FLAGS[mode], *stand_ins, "-x", "c++", "-c"))
        for source, _ in instances
    ]
    steps += [
        Step(source, directory / f"runtime_{source.stem}.o", (compiler, *flags, *runtime, "-c"))
        for source in sorted((EMULATOR / "runtime").glob("*.cpp"))
    ]
    return steps, [compiler, "-shared", "-Wl,-Bsymbolic", *(["--coverage"] if mode == "coverage" else [])]


def _ninja_file(steps: Iterable[Step], link: Sequence[str], output: Path, *, remarks: bool) -> str:
    """With `remarks`, what the compiler says is kept beside each object (`.log`), for tests/compile to read."""

    def path(value: Path) -> str:
        return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    steps = list(steps)
    keep = " > $out.log 2>&1 || { cat $out.log; false; }" if remarks else ""
    lines = [
        "ninja_required_version = 1.8",
        f"rule compile\n  command = $compiler -MD -MF $out.d $in -o $out{keep}",
        "  depfile = $out.d\n  deps = gcc\n  description = $in",
        f"rule link\n  command = {shlex.join(link)} $in -o $out.new && mv -f $out.new $out\n  description = $out",
    ]
    for step in steps:
        lines.append(f"build {path(step.object)}: compile {path(step.source)}\n  compiler = {shlex.join(step.command)}")
    lines.append(f"build {path(output)}: link {' '.join(path(step.object) for step in steps)}\ndefault {path(output)}\n")
    return "\n".join(lines)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _path(*names: str) -> Path | None:
    try:
        return environment.path(*names)
    except RuntimeError as error:
        raise BuildError(str(error)) from None


def find_ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    found = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if not found and (spec := importlib.util.find_spec("ninja")) and spec.origin:
        found = shutil.which("ninja", path=str(Path(spec.origin).parent / "data" / "bin"))
    if not found:
        raise BuildError("ninja is missing: `pip install ninja`")
    return found


def find_host_compiler() -> str:
    named = os.environ.get("CXX") or "g++"
    found = shutil.which(str(_path("CXX")) if re.search(r"[~/]", named) else named)
    if not found:
        raise BuildError("g++ is missing: install it (`apt install g++`), or name a C++20 compiler in CXX")
    text = subprocess.run([found, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False).stdout
    if int(text.split(".")[0] or 0) < 11:
        raise BuildError(f"{found} is version {text.strip()}, C++20 needs g++ 11 or newer: name one in CXX")
    return found


def _host_architecture() -> list[str]:
    """Fused multiply-add in hardware where there is one; the results are the same without, only slower."""
    if platform.machine() == "x86_64":
        flags = set(re.findall(r"\b(?:fma|avx2|f16c|bmi2)\b", Path("/proc/cpuinfo").read_text()))
        return ["-march=x86-64-v3"] if len(flags) == 4 else []
    return []


def find_nvcc() -> str:
    home = _path("CUDA_HOME", "CUDA_PATH")
    found = shutil.which("nvcc", path=str(home / "bin")) if home else shutil.which("nvcc")
    found = found or (None if home else shutil.which("nvcc", path="/usr/local/cuda/bin"))
    if not found:
        where = f"under CUDA_HOME={home}" if home else "on PATH or in /usr/local/cuda"
        raise BuildError(f"nvcc is not found {where}: install the CUDA toolkit 12.0 or newer, or set CUDA_HOME to where it is")
    return os.path.abspath(found)


def nvcc_release(nvcc: str) -> tuple[int, int]:
    match = re.search(r"release (\d+)\.(\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if not match:
        raise BuildError(f"`{nvcc} --version` names no release: set CUDA_HOME to a CUDA toolkit 12.0 or newer")
    release = (int(match[1]), int(match[2]))
    if release < (12, 0):
        raise BuildError(f"nvcc {match[1]}.{match[2]} is too old, C++20 needs 12.0: install a newer one, or set CUDA_HOME to it")
    return release


#: What torch's extension builder takes in TORCH_CUDA_ARCH_LIST for several architectures.
_FAMILIES = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0 5.2+PTX",
    "Pascal": "6.0 6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0 8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0 10.3 12.0 12.1+PTX",
}


def _entries(listed: str) -> list[str]:
    """Of a list in the manner of TORCH_CUDA_ARCH_LIST, with families spelt out."""
    names = re.split(r"[\s;,]+", listed)
    return [entry for name in names for entry in _FAMILIES.get(name, name).split()]


@cache
def _note(text: str) -> None:
    """Once, however often the list is read."""
    print(f"torch-unroll: {text}", file=sys.stderr)


def cuda_targets() -> list[str]:
    """What the CUDA object is compiled for: TORCH_CUDA_ARCH_LIST, or if it is empty or "native" the GPUs present, or if there are
    none sm_80, sm_90a and PTX; without architectures that are older than what the kernels need.

    Returns names such as "80", "80+PTX", "90a".
    """
    nvcc = find_nvcc()
    release = nvcc_release(nvcc)
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    entries = _entries(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if entries in ([], ["native"]):
        entries = _entries(_present() or _DEFAULT_ARCHITECTURES)
    targets: dict[str, bool] = {}  # architecture -> whether its PTX is asked for
    too_old = []
    for name in entries:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if not match:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST names {name!r}: expected entries such as 8.0, 9.0a or 10.0+PTX")
        number = match[1] + match[2]
        if int(number) < 80:
            too_old.append(name)
            continue
        if f"compute_{number}" not in known:
            raise BuildError(
                f"nvcc {release[0]}.{release[1]} ({nvcc}) cannot compile for {name}: install a newer CUDA toolkit, "
                "or name an older architecture with +PTX in TORCH_CUDA_ARCH_LIST"
            )
        # A GPU of capability 9.0 runs sm_90a, so the suffix need not be asked for.
        target = "90a" if number == "90" else number
        targets[target] = targets.get(target, False) or bool(match[4])
    if too_old and not targets:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST names {', '.join(too_old)}, and the kernels need 8.0 or newer: add one, or unset it"
        )
    if too_old:
        _note(f"TORCH_CUDA_ARCH_LIST: {', '.join(too_old)} left out: the kernels need 8.0 or newer")
    return [f"{target}+PTX" if ptx else target for target, ptx in targets.items()]


def _present() -> str:
    """Compute capabilities of this machine's GPUs that the kernels support, as a list for TORCH_CUDA_ARCH_LIST."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    capabilities = {line.strip() for line in found.stdout.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())}
    return " ".join(sorted(each for each in capabilities if float(each) >= 8))


def _gencode(target: str, architecture: str) -> list[str]:
    """Flags that compile a row of an architecture for one target; none if it does not run there."""
    number, _, ptx = target.partition("+")
    if architecture.endswith("a") and number != architecture:
        return []
    if int(number.rstrip("a")) < int(architecture.rstrip("a")):
        return []
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}"]
    if ptx and not architecture.endswith("a"):  # what an "a" adds is of that architecture alone, so its PTX serves no other
        virtual = f"compute_{number.rstrip('a')}"
        flags.append(f"-gencode=arch={virtual},code={virtual}")
    return flags


def cuda_lack() -> str | None:
    """What keeps the CUDA kernels from being built here, with the remedy; None if nothing does."""
    try:
        find_nvcc()
        find_host_compiler()
    except BuildError as error:
        return str(error)
    return None


def table_rows(op: str | None = None) -> list[Kernel]:
    """The kernels of an op, or of every op that has a table."""
    ops = [op] if op else [each for each in OPS if (SOURCES / each / "variants.py").exists()]
    return [row for each in ops for row in kernels(each)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toolchain", choices=("cuda", "emulated"))
    parser.add_argument("--mode", choices=MODES, default="plain", help="of the emulated object")
    parser.add_argument("--op", choices=OPS, help="only this op, in a folder of its own under build/")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--optional", action="store_true", help="without nvcc or g++, say so and succeed")
    parser.add_argument("-j", "--jobs", type=int)
    arguments = parser.parse_args()
    toolchain, mode, op = arguments.toolchain, arguments.mode, arguments.op
    try:
        if arguments.optional and toolchain == "cuda" and (lack := cuda_lack()):
            print(f"torch-unroll: no compiled CUDA kernels: {lack}")
            return
        output = library_path(toolchain, mode)
        directory = BUILD / directory_name(toolchain, mode)
        if op:
            directory = directory.with_name(f"{directory.name}-{op}")
            output = directory / output.name
        output = (arguments.output or output).resolve()
        build(toolchain, table_rows(op), output, mode=mode, directory=directory, jobs=arguments.jobs)
    except BuildError as error:
        sys.exit(f"torch-unroll: {error}")
    print(output)


if __name__ == "__main__":
    main()
