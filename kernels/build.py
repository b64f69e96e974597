"""Compiles the kernels of the kernel table into a shared object with the C interface of `cuda/launch.cu`.

nvcc compiles the kernels for GPUs. For machines without a GPU, g++ compiles the same sources against the emulator's headers in
`tests/emulator/include`. The build needs neither torch nor setuptools.

    python kernels/build.py cuda|emulated [--mode plain|race|coverage] [--op conv2d] [--output PATH] [--optional] [-j N]

`MAX_JOBS`, `CUDA_HOME` and `TORCH_CUDA_ARCH_LIST` have the meaning that torch's own extension builder gives them.
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
from types import ModuleType

if not __package__:  # run as a script: an empty torch_unroll takes the place of the package, whose __init__.py imports torch
    package = ModuleType("torch_unroll")
    package.__path__ = [str(Path(__file__).resolve().parents[1] / "pyext" / "torch_unroll")]
    sys.modules["torch_unroll"] = package
    __package__ = "torch_unroll.kernels"

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
    "-Xfatbin=-compress-all "  # shrinks the object to a sixth; old CUDA 12 drivers cannot read what --compress-mode writes
    "-Xptxas=-v "  # for the logs that _ninja_file keeps
    "--expt-relaxed-constexpr -Werror=cross-execution-space-call"
).split()
# -ffp-contract=off: every host rounds each product and each sum separately. Kernels call fmaf where they want one rounding.
_HOST_FLAGS = (
    "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -fno-exceptions "
    "-Wall -Wno-unknown-pragmas"
).split()
_MODE_FLAGS = {
    "plain": [],
    # The compiler calls __tsan_read* or __tsan_write* before accesses; runtime/tsan.cpp defines these functions, not libtsan.
    "race": ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1"],
    "coverage": ["--coverage", "-O1", "-fprofile-abs-path"],
}


class BuildError(RuntimeError):
    """The kernels cannot be built; the message says what is missing or wrong and usually names the remedy."""


@dataclass(frozen=True)
class Step:
    """One compilation: the source file, the object file, and the command without these two."""

    source: Path
    object: Path
    command: tuple[str, ...]


def library_path(toolchain: str, mode: str = "plain") -> Path:
    """The path of the library with the kernels of all ops: in the package for mode "plain", in build/ for the test modes."""
    name = f"libtorch_unroll_{toolchain}" + ("" if mode == "plain" else f"_{mode}")
    return (LIBRARIES if mode == "plain" else BUILD) / f"{name}.so"


def directory_name(toolchain: str, mode: str = "plain") -> str:
    """The name of the folder in build/ for intermediate files: one for each set of GPU targets and each mode of the emulator."""
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
    """Compiles rows of a kernel table into the shared object `output` and returns its path. Builds are incremental.

    Args:
        toolchain: "cuda" or "emulated".
        mode: for "emulated": "plain"; "race", which checks memory accesses for races; or "coverage", which counts lines for gcov.
        directory: the folder for intermediate files; None stands for the folder in build/ that `directory_name` names.
        include: folders that are searched for the rows' sources before `kernels/cuda`.
        jobs: the number of parallel compilations; None stands for `MAX_JOBS` or the number of CPUs.

    Raises:
        BuildError: a tool is missing or too old, `TORCH_CUDA_ARCH_LIST` is not usable, or a source does not compile.
    """
    directory = directory or BUILD / directory_name(toolchain, mode)
    (directory / "generated").mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:  # one build at a time in a folder
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
            raise BuildError(f"the {toolchain} kernels do not compile; see the compiler's message above")
    return output


def _write_instances(rows: Iterable[Kernel], directory: Path) -> Iterator[tuple[Path, str]]:
    """Writes a file for each pair of source and architecture, and one for the C interface; yields (path, architecture)."""
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
    # Without -gencode the linker would add code for nvcc's default architecture.
    return steps, [nvcc, "--shared", "--cudart=static", *_gencode(targets[0], "80")]


def _emulated_steps(
    instances: list[tuple[Path, str]], directory: Path, folders: list[str], mode: str
) -> tuple[list[Step], list[str]]:
    compiler = find_host_compiler()
    flags = [*_HOST_FLAGS, *_host_architecture()]
    # nvcc includes its cuda_runtime.h in every source file; this build includes the emulator's in the same way.
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
    """The text of build.ninja. With `remarks`, each object's compiler output is kept in a `.log` file for tests/compile."""

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
    """The path of ninja: on PATH, next to this Python, or in the Python package `ninja`. Raises BuildError if it is missing."""
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if not ninja and (spec := importlib.util.find_spec("ninja")) and spec.origin:
        ninja = shutil.which("ninja", path=str(Path(spec.origin).parent / "data" / "bin"))
    if not ninja:
        raise BuildError("ninja is missing: `pip install ninja`")
    return ninja


def find_host_compiler() -> str:
    """The path of the C++20 compiler that `CXX` names, g++ by default. Raises BuildError if it is missing or older than 11."""
    name = os.environ.get("CXX") or "g++"
    compiler = shutil.which(str(_path("CXX")) if re.search(r"[~/]", name) else name)
    if not compiler:
        raise BuildError("g++ is missing: install it (`apt install g++`), or name a C++20 compiler in CXX")
    version = subprocess.run([compiler, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False).stdout
    if int(version.split(".")[0] or 0) < 11:
        raise BuildError(f"{compiler} is version {version.strip()}, C++20 needs g++ 11 or newer: name one in CXX")
    return compiler


def _host_architecture() -> list[str]:
    """Flags that compile fmaf to one instruction on x86 CPUs that have it; without them, fmaf is slower but rounds equally."""
    if platform.machine() == "x86_64":
        flags = set(re.findall(r"\b(?:fma|avx2|f16c|bmi2)\b", Path("/proc/cpuinfo").read_text()))
        return ["-march=x86-64-v3"] if len(flags) == 4 else []
    return []


def find_nvcc() -> str:
    """The path of nvcc: in `CUDA_HOME` or `CUDA_PATH`; if neither is set, on PATH or in /usr/local/cuda.

    Raises:
        BuildError: nvcc is not there.
    """
    home = _path("CUDA_HOME", "CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(home / "bin")) if home else shutil.which("nvcc")
    nvcc = nvcc or (None if home else shutil.which("nvcc", path="/usr/local/cuda/bin"))
    if not nvcc:
        where = f"under CUDA_HOME={home}" if home else "on PATH or in /usr/local/cuda"
        raise BuildError(f"nvcc is not found {where}: install the CUDA toolkit 12.0 or newer, or set CUDA_HOME to where it is")
    return os.path.abspath(nvcc)


def nvcc_release(nvcc: str) -> tuple[int, int]:
    """The major and minor version of nvcc. Raises BuildError if it is older than 12.0 or cannot be read."""
    match = re.search(r"release (\d+)\.(\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if not match:
        raise BuildError(f"`{nvcc} --version` names no release: set CUDA_HOME to a CUDA toolkit 12.0 or newer")
    release = (int(match[1]), int(match[2]))
    if release < (12, 0):
        raise BuildError(f"nvcc {match[1]}.{match[2]} is too old, C++20 needs 12.0: install a newer one, or set CUDA_HOME to it")
    return release


#: The names of families that torch's extension builder accepts in TORCH_CUDA_ARCH_LIST, and their architectures.
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
    """The architectures in a list such as TORCH_CUDA_ARCH_LIST; names of families are expanded."""
    names = re.split(r"[\s;,]+", listed)
    return [entry for name in names for entry in _FAMILIES.get(name, name).split()]


@cache
def note(text: str) -> None:
    """Prints a text to stderr, once for each process."""
    print(f"torch-unroll: {text}", file=sys.stderr)


def cuda_targets() -> list[str]:
    """The architectures that the CUDA object is compiled for, such as "80", "80+PTX", "90a".

    They come from TORCH_CUDA_ARCH_LIST. If that is unset or "native", they are those of this machine's GPUs, or sm_80
    with PTX and sm_90a if it has no GPU that the kernels support. Architectures below 8.0 are left out with a note.

    Raises:
        BuildError: nvcc is missing or too old, an entry has the wrong form or is unknown to nvcc, or all are below 8.0.
    """
    nvcc = find_nvcc()
    release = nvcc_release(nvcc)
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    entries = _entries(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if entries in ([], ["native"]):
        entries = _entries(present_architectures() or _DEFAULT_ARCHITECTURES)
    targets: dict[str, bool] = {}  # architecture -> whether its PTX is included
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
        # Every GPU of capability 9.0 runs code for sm_90a.
        target = "90a" if number == "90" else number
        targets[target] = targets.get(target, False) or bool(match[4])
    if too_old and not targets:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST names {', '.join(too_old)}, and the kernels need 8.0 or newer: add one, or unset it"
        )
    if too_old:
        note(f"TORCH_CUDA_ARCH_LIST: {', '.join(too_old)} left out: the kernels need 8.0 or newer")
    return [f"{target}+PTX" if ptx else target for target, ptx in targets.items()]


def present_architectures() -> str:
    """The compute capabilities of this machine's GPUs that the kernels support, in the form of TORCH_CUDA_ARCH_LIST."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    output = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    capabilities = {line.strip() for line in output.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())}
    return " ".join(sorted(capability for capability in capabilities if float(capability) >= 8))


def _gencode(target: str, architecture: str) -> list[str]:
    """The flags that compile kernels of a `Kernel.architecture` for one target; empty if these kernels do not run on it."""
    number, _, ptx = target.partition("+")
    if architecture.endswith("a") and number != architecture:
        return []
    if int(number.rstrip("a")) < int(architecture.rstrip("a")):
        return []
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}"]
    if ptx and not architecture.endswith("a"):  # PTX for sm_90a runs on no other architecture
        virtual = f"compute_{number.rstrip('a')}"
        flags.append(f"-gencode=arch={virtual},code={virtual}")
    return flags


def cuda_lack() -> str | None:
    """What is wrong with nvcc or the host compiler, with the remedy; None if both are found. Other tools are not checked."""
    try:
        find_nvcc()
        find_host_compiler()
    except BuildError as error:
        return str(error)
    return None


def main() -> None:
    """Runs the build as the head of this file describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toolchain", choices=("cuda", "emulated"))
    parser.add_argument("--mode", choices=MODES, default="plain", help="how the emulated object is instrumented")
    parser.add_argument("--op", choices=OPS, help="build only the kernels of this op, in a folder of their own under build/")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--optional", action="store_true", help="exit with status 0 if nvcc or g++ is missing")
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
        build(toolchain, kernels(op), output, mode=mode, directory=directory, jobs=arguments.jobs)
    except BuildError as error:
        sys.exit(f"torch-unroll: {error}")
    print(output)


if __name__ == "__main__":
    main()
