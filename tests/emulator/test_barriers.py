"""Tests that `delete_barriers.py` deletes every barrier, wait, fence, arrival and commit of the kernels."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.emulator.delete_barriers import REDUNDANT, sites
from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.table import OPS

#: A call of a function whose name contains sync, wait, fence, arrive or commit.
CALL = re.compile(r"\b(\w*(?:sync|wait|fence|arrive|commit)\w*)(?:<[^;]*?>)?\s*\(")
#: Functions of such a name that are left in place: they exchange values within a warp, start copies, or pass the time while a
#: thread polls.
OTHERS = {"__shfl_sync", "__shfl_xor_sync", "__any_sync", "copy_async", "store_async", "spin_wait"}


@pytest.mark.parametrize("op", OPS)
def test_no_barrier_is_left_out(op: str) -> None:
    deleted = Counter(site.file for site in sites(op))
    for path in sorted((SOURCES / op).glob("*.cuh")):
        code = re.sub(r"//.*", "", path.read_text())
        calls = [name for name in CALL.findall(code) if name not in OTHERS]
        assert deleted[f"{op}/{path.name}"] == len(calls), f"{path.name}: {calls}"


def test_what_is_listed_as_redundant_exists() -> None:
    assert set(REDUNDANT) <= {(site.file, site.text) for op in OPS for site in sites(op)}
