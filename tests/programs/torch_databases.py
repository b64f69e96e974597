"""torch's own databases of samples. They need expecttest: where that is missing, the test that asks for them, or the module of
tests if it is its top level that asks, is skipped."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """A module of torch.testing._internal."""
    pytest.importorskip("expecttest", reason="torch's own samples need expecttest: pip install expecttest")
    return import_module(f"torch.testing._internal.{name}")


def op_infos() -> dict[str, Any]:
    """The entries of op_db by name; of an op with variants, the plain one."""
    return {info.name: info for info in reversed(load("common_methods_invocations").op_db)}


def module_infos() -> dict[str, Any]:
    """The entries of module_db by name."""
    return {info.name.removeprefix("nn."): info for info in load("common_modules").module_db}
