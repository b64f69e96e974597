"""Compiled kernels on disk, so that a kernel is compiled once for each user of a machine and not once in every process.

Each kernel has one file, named by `Recipe.digest`. It is written under another name and then renamed, so any number of processes
may fill and read one folder at once. A kernel whose file does not match its checksum is compiled again. If the folder cannot be
used (a read-only home, a full disk, a folder that others may write to), kernels are compiled in memory, and a warning says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path

from torch_unroll.engines.nvrtc import Binary, Recipe
from torch_unroll.kernels import environment

_MAGIC = b"torch_unroll kernel 1"


def folder() -> Path:
    """Returns the folder that TORCH_UNROLL_CACHE_DIR names, else a folder in the user's cache.

    Raises:
        RuntimeError: the user has no home directory.
    """
    named = environment.path("TORCH_UNROLL_CACHE_DIR")
    return named or (environment.path("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_unroll"


def fetch(recipe: Recipe) -> Binary:
    """Returns the compiled kernel, from the disk or else from the compiler."""
    binary = load(recipe)
    if binary is None:
        binary = recipe.compile()
        try:
            store(recipe, binary)
        except (OSError, RuntimeError) as error:
            warn_once(str(error))
    return binary


def load(recipe: Recipe) -> Binary | None:
    """Returns the compiled kernel if its file is intact and only this user or root may write to the folder; else None."""
    try:
        _check_private(folder())
        data = _path(recipe).read_bytes()
    except (OSError, RuntimeError):
        return None  # if the folder cannot be used, `store` raises the same error, and `fetch` warns of it
    magic, _, rest = data.partition(b"\n")
    checksum, _, payload = rest.partition(b"\n")
    if magic != _MAGIC or checksum != hashlib.sha256(payload).hexdigest().encode():
        return None
    symbol, _, code = payload.partition(b"\n")
    return Binary(symbol.decode(), code)


def store(recipe: Recipe, binary: Binary) -> None:
    """Writes a compiled kernel to the disk, replacing the kernel's old file if there is one.

    Raises:
        OSError, RuntimeError: the folder cannot be used.
    """
    path = _path(recipe)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(path.parent)
    payload = binary.symbol.encode() + b"\n" + binary.code
    checksum = hashlib.sha256(payload).hexdigest().encode()
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16], suffix=".unfinished")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"\n".join((_MAGIC, checksum, payload)))
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _path(recipe: Recipe) -> Path:
    return folder() / f"{recipe.digest}.kernel"


def _check_private(path: Path) -> None:
    """Raises PermissionError for a folder in which a user other than this one and root could have put code."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & 0o022:
        raise PermissionError(f"{path} may be written to by other users (chmod go-w {path})")


@cache
def warn_once(reason: str) -> None:
    """Warns that kernels are not kept, once for each reason."""
    warnings.warn(
        f"torch_unroll: compiled kernels are not kept ({reason}), so every process compiles them again; "
        "name a folder of your own in TORCH_UNROLL_CACHE_DIR",
        RuntimeWarning,
    )
