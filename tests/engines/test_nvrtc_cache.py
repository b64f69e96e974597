"""The disk cache of compiled kernels, with the real NVRTC: races, damage, folders that cannot be used, sources with mistakes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import warnings
from pathlib import Path

import pytest

from torch_unroll.engines import nvrtc, nvrtc_cache
from torch_unroll.engines.nvrtc import Binary, Recipe
from torch_unroll.kernels.cuda.max_pool2d.parameters import MaxPool2dIndicesParameters
from torch_unroll.kernels.cuda.max_pool2d.variants import PARAMETERS
from torch_unroll.kernels.dtypes import DTYPES
from torch_unroll.kernels.table import Kernel, kernels, kernels_of
from torch_unroll.tools import compile as compile_command

pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")

(KERNEL,) = (row for row in kernels("max_pool2d") if row.expression == "max_pool2d_indices_kernel<uint8_t>")
RECIPE = Recipe(KERNEL, "sm_80")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the path of an empty cache, and forgets which warnings were given."""
    path = tmp_path / "cache"
    monkeypatch.setenv("TORCH_UNROLL_CACHE_DIR", str(path))
    nvrtc_cache.warn_once.cache_clear()
    return path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Records the recipes that are compiled rather than loaded from the disk."""
    recipes: list[Recipe] = []
    compile = Recipe.compile

    def recorded(self: Recipe) -> Binary:
        recipes.append(self)
        return compile(self)

    monkeypatch.setattr(Recipe, "compile", recorded)
    return recipes


def test_a_kernel_is_compiled_once(folder: Path, compilations: list[Recipe]) -> None:
    first, second = nvrtc_cache.fetch(RECIPE), nvrtc_cache.fetch(RECIPE)
    assert first == second
    assert first.code.startswith(b"\x7fELF")
    assert first.symbol.encode() in first.code
    assert compilations == [RECIPE]
    (entry,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["max_pool2d/gather.cuh", "max_pool2d/windows.cuh", "shapes.h", "platform/types.h"])
def test_the_digest_covers_every_included_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = nvrtc.sources(KERNEL.source)
    assert name in files
    before = Recipe(KERNEL, "sm_80").digest
    monkeypatch.setattr(nvrtc, "sources", lambda _: {**files, name: files[name] + b"\n"})
    assert Recipe(KERNEL, "sm_80").digest != before


def test_the_digest_covers_options_architecture_compiler_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(row for row in kernels("max_pool2d") if row.name == KERNEL.name and row != KERNEL)
    digests = {RECIPE.digest, Recipe(KERNEL, "sm_90a").digest, Recipe(other, "sm_80").digest}
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "-G"))
        digests.add(Recipe(KERNEL, "sm_80").digest)
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "version", lambda: (99, 0))
        digests.add(Recipe(KERNEL, "sm_80").digest)
    assert len(digests) == 5


def _damage(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[-100] ^= 1
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "a byte short": data[:-1],
        "flipped": bytes(flipped),
        "text": b"x" * 999,
    }


@pytest.mark.parametrize("damage", ["empty", "truncated", "a byte short", "flipped", "text"])
def test_a_damaged_entry_is_compiled_again(damage: str, folder: Path, compilations: list[Recipe]) -> None:
    whole = nvrtc_cache.fetch(RECIPE)
    (entry,) = folder.iterdir()
    entry.write_bytes(_damage(entry.read_bytes())[damage])
    assert nvrtc_cache.fetch(RECIPE) == whole
    assert len(compilations) == 2
    assert nvrtc_cache.load(RECIPE) == whole  # the file has been replaced


def _racer(start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    results.put(nvrtc_cache.fetch(RECIPE))  # type: ignore[attr-defined]


def test_processes_that_race_on_an_empty_cache(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    racers = [context.Process(target=_racer, args=(start, results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    start.set()
    binaries = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join(timeout=30)
        assert racer.exitcode == 0
    assert binaries[0] == binaries[1] == binaries[2] == nvrtc_cache.load(RECIPE)
    assert [path.suffix for path in folder.iterdir()] == [".kernel"]  # no unfinished file is left


def test_a_reader_sees_old_or_new_but_never_half(folder: Path) -> None:
    """A writer that is interrupted before it renames its file has not changed the entry."""
    old, new = Binary("old", b"1" * 1000), Binary("new", b"2" * 1000)
    nvrtc_cache.store(RECIPE, old)
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nvrtc_cache.store(RECIPE, new)
    assert nvrtc_cache.load(RECIPE) == old
    assert len(list(folder.iterdir())) == 1


def _assert_one_warning(message: str, compilations: list[Recipe]) -> None:
    """Asserts that each of two fetches compiles the kernel, with one warning in all."""
    with pytest.warns(RuntimeWarning, match=message) as caught:
        assert nvrtc_cache.fetch(RECIPE).code.startswith(b"\x7fELF")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvrtc_cache.fetch(RECIPE)
    assert len(compilations) == 2


def test_a_full_disk(folder: Path, compilations: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    fdopen = os.fdopen

    class Full:
        def __init__(self, descriptor: int, mode: str):
            self.file = fdopen(descriptor, mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", Full)
    _assert_one_warning("No space left on device.*TORCH_UNROLL_CACHE_DIR", compilations)
    assert not list(folder.iterdir())


def test_a_home_that_is_no_folder(tmp_path: Path, compilations: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a file as the cache's parent, because taking write permission from a folder would not stop root."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("TORCH_UNROLL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _assert_one_warning("Not a directory", compilations)


def test_a_read_only_home(folder: Path, compilations: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    monkeypatch.setattr(Path, "mkdir", refuse)
    _assert_one_warning("Read-only file system", compilations)


def test_no_home(compilations: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TORCH_UNROLL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    _assert_one_warning("home directory", compilations)


def test_code_from_a_folder_that_others_can_write_to_is_not_run(folder: Path, compilations: list[Recipe]) -> None:
    nvrtc_cache.fetch(RECIPE)
    compilations.clear()
    folder.chmod(0o777)
    assert nvrtc_cache.load(RECIPE) is None
    _assert_one_warning("may be written to by other users", compilations)


def test_a_compile_error_shows_the_whole_log_with_our_file_and_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict(nvrtc.sources(KERNEL.source))
    lines = files["max_pool2d/windows.cuh"].split(b"\n")
    files["max_pool2d/windows.cuh"] = b"\n".join(
        [*lines, b"int first_mistake() { return undeclared; }", b"nonsense second_mistake;"]
    )
    monkeypatch.setattr(nvrtc, "sources", lambda _: files)
    with pytest.raises(nvrtc.CompileError) as raised:
        nvrtc_cache.fetch(Recipe(KERNEL, "sm_80"))
    message = str(raised.value)
    assert message.startswith("max_pool2d_indices_kernel<uint8_t> does not compile for sm_80 (NVRTC ")
    assert f'max_pool2d/windows.cuh({len(lines) + 1}): error: identifier "undeclared" is undefined' in message
    assert f'max_pool2d/windows.cuh({len(lines) + 2}): error: identifier "nonsense" is undefined' in message
    assert not folder.exists()


def test_a_kernel_that_is_not_in_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETERS, "missing_kernel", MaxPool2dIndicesParameters)
    with pytest.raises(nvrtc.CompileError, match="missing_kernel<float> does not compile"):
        Recipe(Kernel(KERNEL.source, "missing_kernel", ("float",)), "sm_80").compile()


@pytest.mark.parametrize(("capability", "architecture"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100")])
def test_rows_and_architectures(capability: tuple[int, int], architecture: str) -> None:
    assert nvrtc.architecture_of(capability) == architecture
    assert nvrtc.runs_on(Kernel("", "a_kernel", architecture="80"), architecture)
    assert nvrtc.runs_on(Kernel("", "a_kernel", architecture="90a"), architecture) == (architecture == "sm_90a")
    assert nvrtc.runs_on(Kernel("", "a_kernel", architecture="90"), architecture) == (architecture != "sm_80")


def test_every_row_belongs_to_a_dtype() -> None:
    for op in ("conv2d", "max_pool2d", "rnn"):
        by_dtype = {dtype: set(kernels_of(op, dtype)) for dtype in DTYPES}
        assert set().union(*by_dtype.values()) == set(kernels(op))
        assert all(len(rows) < len(kernels(op)) for rows in by_dtype.values())


def test_the_command_fills_the_cache(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_command, "rows", lambda *_: [KERNEL])
    arguments = ["--op", "max_pool2d", "--dtype", "float16", "--architecture", "sm_90", "-j", "1"]
    assert compile_command.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"1 kernels for sm_90a in {folder}: 1 compiled now")
    assert compile_command.main(arguments) == 0
    assert "0 compiled now" in capsys.readouterr().out


def test_the_command_fails_where_the_cache_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write_text("")
    assert compile_command.main(["--op", "max_pool2d", "--dtype", "float16", "--architecture", "sm_80", "-j", "1"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert compile_command.main(["--architecture", "sm_70"]) == 1
    assert "--architecture: expected one of sm_80, " in capsys.readouterr().err
