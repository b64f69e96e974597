"""Compiled kernels on disk, so that a kernel is compiled once on a machine and not once in every process.

One file a kernel, named by what its code depends on (`Recipe.digest`), written beside its place and moved there whole: any
number of processes may fill and read one folder at once. A file that is not what its checksum says is compiled again. Where the
folder cannot be used (a read-only home, a full disk, a folder that others may write to) kernels are compiled in memory, and one
warning says why.
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
    """TORCH_UNROLL_CACHE_DIR, else a folder in the user's cache.

    Raises:
        RuntimeError: the user has no home.
    """
    named = environment.path("TORCH_UNROLL_CACHE_DIR")
    return named or (environment.path("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_unroll"


def fetch(recipe: Recipe) -> Binary:
    """The compiled kernel, from the disk or else from the compiler."""
    found = load(recipe)
    if found is None:
        found = recipe.compile()
        try:
            store(recipe, found)
        except (OSError, RuntimeError) as error:
            _warn(str(error))
    return found


def load(recipe: Recipe) -> Binary | None:
    """The compiled kernel if it is on the disk, whole and private."""
    try:
        _check_private(folder())
        data = _path(recipe).read_bytes()
    except (OSError, RuntimeError):
        return None  # `store` will meet the same, and tell
    magic, _, rest = data.partition(b"\n")
    checksum, _, payload = rest.partition(b"\n")
    if magic != _MAGIC or checksum != hashlib.sha256(payload).hexdigest().encode():
        return None
    symbol, _, code = payload.partition(b"\n")
    return Binary(symbol.decode(), code)


def store(recipe: Recipe, binary: Binary) -> None:
    """Puts a compiled kernel on the disk, in the place of whatever stands there.

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
    """Code is run only from where nobody else could have put it."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & 0o022:
        raise PermissionError(f"{path} may be written to by other users (chmod go-w {path})")


@cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    warnings.warn(
        f"torch_unroll: compiled kernels are not kept ({reason}), so every process compiles them anew; "
        "name a folder of your own in TORCH_UNROLL_CACHE_DIR",
        RuntimeWarning,
    )
