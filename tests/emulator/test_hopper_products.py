"""Compares wgmma, and a pipeline of TMA and wgmma, with torch, and tests the reports of their misuse."""

from __future__ import annotations

import itertools

import hopper_model as model
import numpy as np
import pytest
import torch
from emulated import Emulator, LaunchError, emulate
from hopper_launches import LAYOUTS, MAJORS, NAMES, PRODUCTS, ROWS, multiply, multiply_ring, random_matrix, words

from torch_unroll.kernels.dtypes import ITEM_BYTES


@pytest.fixture(scope="module", params=["plain", "race"])
def emulator(request: pytest.FixtureRequest) -> Emulator:
    return emulate(ROWS, "hopper", request.param)


@pytest.fixture
def race(emulator: Emulator) -> bool:
    return "race" in emulator.library._name


@pytest.mark.parametrize(("dtype", "n", "majors"), PRODUCTS)
def test_a_product_of_each_layout(emulator: Emulator, dtype: str, n: int, majors: str) -> None:
    depth = 64 // ITEM_BYTES[NAMES[dtype]]
    a, b = random_matrix(dtype, 64, depth, 0), random_matrix(dtype, n, depth, 1)
    layout_a, layout_b = (LAYOUTS[major.removeprefix("Major::")] for major in majors.split(", "))
    kernel = f"wgmma_kernel<{dtype}, {n}, {majors}, Mistake::none>"
    for seed, (span_a, span_b) in enumerate(itertools.product((32, 64, 128), repeat=2)):
        emulator.seed(seed)
        starts = (8 * span_a * (seed % 3), 8 * span_b * (seed % 2))
        d = multiply(emulator, kernel, layout_a(words(a), span_a), layout_b(words(b), span_b), n, starts=starts)
        np.testing.assert_array_equal(d, 1 + (a.float() @ b.float().T).numpy())


def test_a_product_reads_19_bits_of_float32(emulator: Emulator) -> None:
    a, b = torch.zeros(64, 16), torch.zeros(64, 16)
    a[0, 0], b[0, 0] = 1 + 2**-10 + 2**-11 + 2**-23, 1
    kernel = f"wgmma_kernel<float, 64, {MAJORS[0]}, Mistake::none>"
    d = multiply(emulator, kernel, model.depth_major(words(a), 64), model.depth_major(words(b), 64), 64)
    assert d[0, 0] == 2 + 2**-10


# ---- mistakes in a product

MISTAKEN = ("bfloat16", 64, MAJORS[1])


def mistaken(emulator: Emulator, mistake: str, seed: int = 0) -> bool:
    """Whether the kernel with this mistake computes the right result."""
    dtype, n, majors = MISTAKEN
    a, b = random_matrix(dtype, 64, 32, 0), random_matrix(dtype, n, 32, 1)
    emulator.seed(seed)
    kernel = f"wgmma_kernel<{dtype}, {n}, {majors}, Mistake::{mistake}>"
    d = multiply(emulator, kernel, model.depth_major(words(a), 128), model.row_major(words(b), 128), n)
    return np.array_equal(d, 1 + (a.float() @ b.float().T).numpy())


@pytest.mark.parametrize("seed", range(4))
def test_without_a_mistake_the_product_is_right(emulator: Emulator, seed: int) -> None:
    assert mistaken(emulator, "none", seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_proxy_fence_of_one_thread_is_missed(emulator: Emulator, race: bool, seed: int) -> None:
    if not race:
        pytest.skip("only race mode reports this")
    message = (
        r"wgmma at hopper.cuh:\d+ reads through the async proxy what thread \(77,0,0\) of block \(0,0,0\) wrote at "
        r"hopper.cuh:\d+: fence_proxy_async is missing"
    )
    with pytest.raises(LaunchError, match=message):
        mistaken(emulator, "no_proxy_fence", seed)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no_fence", "without wgmma_fence"),
        ("no_commit", "the thread ends, and no wgmma_commit has closed the product's group"),
        ("no_wait", "the thread ends, and no wgmma_wait has waited for the product"),
        ("touched", "D was written while a product on it was pending"),
        ("other_descriptor", "another warp of this warpgroup has issued another product instead"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_mistake_is_reported(emulator: Emulator, mistake: str, message: str, seed: int) -> None:
    with pytest.raises(LaunchError, match=f"wgmma at hopper.cuh:\\d+: {message}"):
        mistaken(emulator, mistake, seed)


@pytest.mark.parametrize("seed", range(4))
def test_d_before_the_wait_is_nan(emulator: Emulator, seed: int) -> None:
    emulator.seed(seed)
    a = model.depth_major(words(random_matrix("bfloat16", 64, 32, 0)), 128)
    b = model.row_major(words(random_matrix("bfloat16", 64, 32, 1)), 128)
    assert np.isnan(multiply(emulator, f"wgmma_kernel<bfloat16, 64, {MAJORS[1]}, Mistake::early_read>", a, b, 64)).all()


@pytest.mark.parametrize(
    ("change", "threads", "message"),
    [
        ({"span": 16}, 128, "the span is not 32, 64 or 128 bytes"),
        ({"stride": 1032}, 128, "strides are multiples of 16 below 2\\^18"),
        ({"stride": 512}, 128, "the operand's strides are not multiples of eight rows"),
        ({"stride": 8192}, 128, "the operand is not in this block's shared memory"),
        ({"step": 16}, 128, "the operand starts inside of eight rows, or at a depth that is not a multiple of 32 bytes"),
        ({"step": 128}, 128, "the operand starts inside of eight rows, or at a depth that is not a multiple of 32 bytes"),
        ({"step": 1 << 18}, 128, "the descriptor has no swizzle, a base offset, or a field that overflowed"),
        ({}, 96, "the warp is not in a whole warpgroup of four warps"),
    ],
)
def test_invalid_descriptors_are_reported(emulator: Emulator, change: dict[str, int], threads: int, message: str) -> None:
    a, b = (model.depth_major(words(random_matrix("half", 64, 32, seed)), 128) for seed in (0, 1))
    kernel = f"wgmma_kernel<half, 64, {MAJORS[0]}, Mistake::none>"
    with pytest.raises(LaunchError, match=message):
        multiply(emulator, kernel, a._replace(**change), b, 64, threads=threads)


# ---- a pipeline of two stages


def ring(emulator: Emulator, dtype: str, mistake: str, seed: int, depth_steps: int = 5) -> bool:
    """Whether the pipeline with this mistake computes a GEMM of four tiles correctly."""
    depth = depth_steps * 128 // ITEM_BYTES[NAMES[dtype]]
    a, b = random_matrix(dtype, 128, depth, 2), random_matrix(dtype, 256, depth, 3)
    emulator.seed(seed)
    return np.array_equal(multiply_ring(emulator, dtype, mistake, a, b), (a.float() @ b.float().T).numpy())


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_a_ring_of_two_stages(emulator: Emulator, dtype: str, seed: int) -> None:
    assert ring(emulator, dtype, "correct", seed, 1 + 2 * seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_wrong_parity_is_found(emulator: Emulator, seed: int) -> None:
    def wrong() -> None:
        if not ring(emulator, "bfloat16", "wrong_parity", seed):
            raise LaunchError("a wrong result")

    with pytest.raises(LaunchError, match=r"a wrong result|race on byte|deadlock"):
        wrong()


@pytest.mark.parametrize("seed", range(4))
def test_another_swizzle_than_the_maps_is_wrong(emulator: Emulator, seed: int) -> None:
    assert not ring(emulator, "bfloat16", "wrong_span", seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_stage_released_before_the_wait_is_found(emulator: Emulator, race: bool, seed: int) -> None:
    if race:
        with pytest.raises(LaunchError, match=r"race on byte \d+ of the shared memory"):
            ring(emulator, "bfloat16", "late_wait", seed)
    else:
        assert not all(ring(emulator, "bfloat16", "late_wait", 4 * seed + i) for i in range(4))


@pytest.mark.parametrize("seed", range(4))
def test_expecting_the_wrong_number_of_bytes_is_a_deadlock(emulator: Emulator, seed: int) -> None:
    with pytest.raises(LaunchError, match=r"(?s)deadlock.*wait for an mbarrier at hopper.cuh:"):
        ring(emulator, "bfloat16", "wrong_bytes", seed)
