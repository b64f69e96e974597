"""The emulator's versions of kernels/cuda/platform: matrix instructions, asynchronous copies, exchanges between blocks."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from emulated import Emulator, LaunchError, emulate, fill, instances, launch_config

MATRICES = instances(
    "matrices.cuh",
    *((name, dtype) for name in ("mma_16bit_kernel", "stmatrix_kernel") for dtype in ("half", "bfloat16")),
    *(("ldmatrix_kernel", f"{dtype}, {transposed}") for dtype in ("half", "bfloat16") for transposed in ("false", "true")),
    ("mma_tf32_kernel", "float"),
    ("mma_f64_kernel", "double"),
)
EXCHANGES = instances(
    "exchanges.cuh",
    *(("copy_kernel", size) for size in ("4", "8", "16")),
    ("exchange_kernel", "1"),
    ("wide_exchange_kernel", "2"),
    ("named_barrier_kernel", "5"),
)
TORCH = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}


class ProductParameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in "abcd"]


class CopyParameters(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("source_bytes", ctypes.c_int32), ("pending", ctypes.c_int32)]


class ExchangeParameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("flags", "data", "sum")]


@pytest.fixture(scope="module")
def matrices() -> Emulator:
    return emulate(MATRICES, "matrices")


@pytest.fixture(scope="module")
def exchanges() -> Emulator:
    return emulate(EXCHANGES, "exchanges")


@pytest.mark.parametrize(
    ("kernel", "dtype", "shape"),
    [
        *((f"{name}<{dtype}{more}>", dtype, (16, 8, 16))
          for dtype in ("half", "bfloat16")
          for name, more in (("mma_16bit_kernel", ""), ("ldmatrix_kernel", ", false"), ("ldmatrix_kernel", ", true"))),
        ("mma_tf32_kernel<float>", "float", (16, 8, 8)),
        ("mma_f64_kernel<double>", "double", (8, 8, 4)),
    ],
)  # fmt: skip
def test_a_tile_is_the_product(matrices: Emulator, kernel: str, dtype: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    wide = torch.float64 if dtype == "double" else torch.float32
    # With small integers every product and sum is exact, so no tolerance can hide a permuted fragment.
    random = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-8, 9, size, generator=random).to(wide) for size in ((m, k), (n, k), (m, n)))
    a, b, d = a.to(TORCH[dtype]), b.to(TORCH[dtype]), torch.zeros(m, n, dtype=wide)
    parameters = ProductParameters(*(tensor.data_ptr() for tensor in (a, b, c, d)))
    matrices.launch(kernel, launch_config(1, 32, shared_bytes=1024), parameters)
    torch.testing.assert_close(d, a.to(wide) @ b.to(wide).T + c, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_stmatrix_undoes_ldmatrix(matrices: Emulator, dtype: str) -> None:
    a = torch.arange(256, dtype=torch.int16)
    b = torch.zeros_like(a)
    matrices.launch(
        f"stmatrix_kernel<{dtype}>", launch_config(1, 32, shared_bytes=1024), ProductParameters(a.data_ptr(), b.data_ptr())
    )
    assert torch.equal(a, b)


def test_tf32_rounds_away_from_zero_at_a_tie(matrices: Emulator) -> None:
    def product(value: float) -> float:
        a, b, c, d = torch.zeros(16, 8), torch.zeros(8, 8), torch.zeros(16, 8), torch.zeros(16, 8)
        a[0, 0], b[0, 0] = value, 1
        parameters = ProductParameters(*(tensor.data_ptr() for tensor in (a, b, c, d)))
        matrices.launch("mma_tf32_kernel<float>", launch_config(1, 32), parameters)
        return d[0, 0].item()

    assert product(1 + 2**-11) == 1 + 2**-10
    assert product(-1 - 2**-11) == -1 - 2**-10
    assert product(1 + 2**-11 - 2**-23) == 1


def copy(emulator: Emulator, size: int, source_bytes: int, pending: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(1, 8 * size + 1, dtype="uint32"), np.zeros(8 * size, "uint32")
    config = launch_config(1, 32, shared_bytes=32 * size)
    emulator.launch(f"copy_kernel<{size}>", config, fill(CopyParameters, x, y, source_bytes, pending))
    return x.view("uint8").reshape(32, size), y.view("uint8").reshape(32, size)


@pytest.mark.parametrize(("size", "source_bytes"), [(4, 4), (4, 0), (4, 3), (8, 8), (8, 4), (16, 16), (16, 6), (16, 0)])
def test_copy_async_fills_the_rest_with_zeros(exchanges: Emulator, size: int, source_bytes: int) -> None:
    x, y = copy(exchanges, size, source_bytes)
    x[:, source_bytes:] = 0
    np.testing.assert_array_equal(y, x)


def test_a_copy_that_is_not_waited_for_is_late(exchanges: Emulator) -> None:
    _, y = copy(exchanges, 16, 16, pending=1)
    assert (y == 0xFF).all(axis=1).any()


def test_blocks_exchange_through_flags(exchanges: Emulator) -> None:
    blocks, threads = 16, 32
    flags, data, sums = (np.zeros(size, "uint32") for size in (blocks, blocks * threads, blocks))
    config = launch_config(blocks, threads, cooperative=True)
    exchanges.launch("exchange_kernel<1>", config, fill(ExchangeParameters, flags, data, sums))
    assert (sums == data.sum()).all()
    assert data.sum() == sum(b + t for b in range(blocks) for t in range(threads))


def test_blocks_that_are_not_resident_together_deadlock(exchanges: Emulator) -> None:
    flags, data, sums = (np.zeros(512, "uint32") for _ in range(3))
    with pytest.raises(LaunchError, match="poll for values that no thread will write"):
        exchanges.launch("exchange_kernel<1>", launch_config(16, 32), fill(ExchangeParameters, flags, data, sums))


def test_sixteen_bytes_arrive_together(exchanges: Emulator) -> None:
    data, sums = np.zeros(4, "uint32"), np.zeros(1, "uint32")
    exchanges.launch("wide_exchange_kernel<2>", launch_config(2, 1, cooperative=True), fill(ExchangeParameters, data, data, sums))
    assert sums[0] == 10


def test_named_barriers_join_part_of_a_block(exchanges: Emulator) -> None:
    data = np.zeros(128, "uint32")
    exchanges.launch(
        "named_barrier_kernel<5>", launch_config(1, 128, shared_bytes=512), fill(ExchangeParameters, data, data, data)
    )
    expected = [sum(range(rounds)) + rounds * (63 - thread) for rounds in (5, 6) for thread in range(64)]
    np.testing.assert_array_equal(data, expected)
