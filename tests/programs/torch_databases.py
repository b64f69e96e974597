"""torch's own databases of samples, which need expecttest. If that is missing, a test that loads a database is skipped, and so is
a test module that loads one at its top level."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """Imports a module of torch.testing._internal."""
    pytest.importorskip("expecttest", reason="torch's own samples need expecttest: pip install expecttest")
    return import_module(f"torch.testing._internal.{name}")


def op_infos() -> dict[str, Any]:
    """The entries of op_db by name; for an op with variants, the first of them."""
    return {info.name: info for info in reversed(load("common_methods_invocations").op_db)}


def module_infos() -> dict[str, Any]:
    """The entries of module_db by name."""
    return {info.name.removeprefix("nn."): info for info in load("common_modules").module_db}
