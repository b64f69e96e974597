"""`delete_barriers.py` deletes every barrier, wait and fence of the kernels."""

from __future__ import annotations

import re

import pytest

from tests.emulator.delete_barriers import REDUNDANT, sites
from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.table import OPS

#: A call of a function that is named after what barriers do.
CALL = re.compile(r"\b(\w*(?:sync|wait|fence)\w*)(?:<[^;]*?>)?\(")
#: Functions of such a name that are not barriers: they exchange values within a warp, start a copy, or pass the time while a
#: thread polls.
OTHERS = {"__shfl_sync", "__shfl_xor_sync", "__any_sync", "copy_async", "copy_async_commit", "store_async", "spin_wait"}


@pytest.mark.parametrize("op", OPS)
def test_no_barrier_is_left_out(op: str) -> None:
    deleted = {(site.file, site.line) for site in sites(op)}
    for path in sorted((SOURCES / op).glob("*.cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if set(CALL.findall(line.split("//")[0])) - OTHERS:
                assert (f"{op}/{path.name}", number) in deleted, f"{path.name}:{number}: {line.strip()}"


def test_what_is_listed_as_redundant_exists() -> None:
    assert set(REDUNDANT) <= {(site.file, site.text) for op in OPS for site in sites(op)}
