"""TMA: tiled and im2col copies against an independent model, the encoders' limits, and reports of misuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hopper_model as model
import numpy as np
import pytest
from emulated import Emulator, LaunchError, emulate
from hopper_launches import (
    LOCAL_MAP,
    NAMES,
    NO_PROXY_FENCE,
    NOBODY_WAITS,
    OTHER_BARRIER,
    ROWS,
    arrived,
    copy_box,
    numbered,
    spec_of,
)  # fmt: skip

from torch_unroll.kernels.dtypes import ITEM_BYTES
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec


@pytest.fixture(scope="module", params=["plain", "race"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    emulator = emulate(ROWS, "hopper", request.param)
    with emulator.arithmetic(copied=False):
        yield emulator


@pytest.fixture
def race(emulator: Emulator) -> bool:
    return "race" in emulator.library._name


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("dtype", NAMES.values())
@pytest.mark.parametrize("seed", range(4))
def test_a_tiled_copy(emulator: Emulator, dtype: str, swizzle: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = ITEM_BYTES[dtype]
    piece = 16 // size
    tensor = numbered(dtype, 3, 4, 5, piece * int(random.integers(1, 6)))
    box = (piece * int(random.integers(1, swizzle // 16 + 1)), *random.integers(1, 6, 3).tolist())
    stride = (1, *random.integers(1, 4, 3).tolist())
    start = [int(random.integers(-2, extent + 1)) for extent in tensor.shape[::-1]]
    rows = model.tiled(tensor, start, box, stride)
    at = 8 * swizzle * int(random.integers(3))
    spec = spec_of(tensor, dtype, swizzle, box=box, element_stride=stride)
    emulator.seed(seed)
    expected = np.concatenate([np.full(at, 0xEE, np.uint8), model.in_shared_memory(arrived(rows), swizzle, fill=0xEE)])
    np.testing.assert_array_equal(copy_box(emulator, spec, tensor, start, rows=len(rows), at=at), expected)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("dtype", NAMES.values())
@pytest.mark.parametrize("seed", range(8))
def test_an_im2col_copy(emulator: Emulator, dtype: str, swizzle: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = ITEM_BYTES[dtype]
    piece = 16 // size
    N, H, W = random.integers(1, 4), random.integers(4, 9), random.integers(4, 9)
    tensor = numbered(dtype, N, H, W, piece * int(random.integers(1, 6)))
    channels = piece * int(random.integers(1, swizzle // 16 + 1))
    lower = random.integers(-3, 2, 2).tolist()
    upper = [int(random.integers(low - extent + 1, 3)) for low, extent in zip(lower, (W, H), strict=True)]
    stride = random.integers(1, 4, 2).tolist()
    outputs = [(extent - 1 + up - low) // u + 1 for extent, low, up, u in zip((W, H), lower, upper, stride, strict=True)]
    w, h = (low + u * int(random.integers(count)) for low, u, count in zip(lower, stride, outputs, strict=True))
    channel = int(random.choice([-1, 0, channels, tensor.shape[3] - 1, tensor.shape[3]]))
    start = [channel, w, h, int(random.integers(N))]
    offset = random.integers(0, 5, 2).tolist()
    pixels = int(random.integers(1, 65))
    spec = spec_of(
        tensor, dtype, swizzle, element_stride=(1, *stride, 1), lower=tuple(lower), upper=tuple(upper),
        channels=channels, pixels=pixels,
    )  # fmt: skip
    rows = model.im2col(tensor, lower, upper, stride, start, offset, channels, pixels)
    emulator.seed(seed)
    copied = copy_box(emulator, spec, tensor, start, offset, rows=pixels)
    np.testing.assert_array_equal(copied, model.in_shared_memory(arrived(rows), swizzle, fill=0xEE))


#: Two taps (w, h) of a 3x3 filter over a 5x5 image with padding 1 and stride 2 -> the pixels (n, h, w) that the first eight
#: outputs multiply by the tap, or None in the padding; worked out by hand.
EXAMPLE = {
    (0, 0): [None, None, None, None, (0, 1, 1), (0, 1, 3), None, (0, 3, 1)],
    (2, 1): [(0, 0, 1), (0, 0, 3), None, (0, 2, 1), (0, 2, 3), None, (0, 4, 1), (0, 4, 3)],
}


@pytest.mark.parametrize("offset", EXAMPLE)
def test_the_worked_example(emulator: Emulator, offset: tuple[int, int]) -> None:
    tensor = numbered("bfloat16", 2, 5, 5, 8)
    spec = spec_of(
        tensor, "bfloat16", 32, element_stride=(1, 2, 2, 1), lower=(-1, -1), upper=(-1, -1), channels=8, pixels=24
    )  # fmt: skip
    copied = copy_box(emulator, spec, tensor, (0, -1, -1, 0), offset, rows=24).view(np.uint16).reshape(24, 2, 8)
    first = [int(copied[i, i // 4 % 2, 0]) for i in range(24)]
    pixels = [None if value == 0 else tuple(int(i) for i in np.unravel_index((value - 1) // 8, (2, 5, 5))) for value in first]
    assert pixels[:8] == EXAMPLE[offset]
    assert pixels[9:17] == [pixel and (1, *pixel[1:]) for pixel in EXAMPLE[offset]]
    assert pixels[18:] == [None] * 6


@pytest.mark.parametrize("truncate", [False, True])
def test_float32_arrives_as_tf32(emulator: Emulator, truncate: bool) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, 256, np.uint32)
    words[:12] = [0x3F801000, 0x3F801001, 0x3F803000, 0x3F800FFF, 0xBF801000, 0x7F800000, 0x7FC00001, 1, 0x7F7FFFFF, 0x1000,
                  0x1001, 0x807FFFFF]  # fmt: skip
    tensor = words.view(np.float32).reshape(1, 1, 8, 32)
    spec = spec_of(tensor, "float32", 128, box=(32, 8, 1, 1))
    expected = model.in_shared_memory(model.tf32(tensor, truncate=truncate).reshape(8, 32), 128)
    with emulator.arithmetic(copied=truncate):
        copied = copy_box(emulator, spec, tensor, (0, 0, 0, 0), rows=8)
    np.testing.assert_array_equal(copied, expected)


IMAGE = numbered("bfloat16", 2, 5, 5, 8)
TILED = spec_of(IMAGE, "bfloat16", 32, box=(8, 4, 1, 1))
COLUMNS = spec_of(IMAGE, "bfloat16", 32, lower=(-1, -1), upper=(-1, -1), element_stride=(1, 2, 2, 1), channels=8, pixels=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": (0, 0, -1, 0)}, "W = 0 is not a multiple of 2 from -1"),
        ({"start": (0, -1, 5, 0)}, "H = 5 is not within -1 and 3"),
        ({"start": (0, -1, -1, 2)}, "N = 2 is not within 0 and 1"),
        ({"start": (8, 1, 1, 2)}, "N = 2 is not within 0 and 1"),
        ({"start": (0, -1, -1, 7)}, "N = 7 is not within 0 and 1"),
        ({"start": (0, -1, -1, -1)}, "N = -1 is not within 0 and 1"),
        ({"offset": (256, 0)}, "offset 256 is not within 0 and 255"),
        ({"at": 64}, "the destination is not a multiple of 256 bytes, 8 rows"),
        ({"at": -256}, r"the destination's 256 bytes are not in this block's shared memory"),
        ({"mistake": LOCAL_MAP}, "the engine cannot read a local copy"),
        ({"mistake": OTHER_BARRIER}, "it is not initialised"),
        ({"encoded": TensorMap()}, "the map has not been encoded"),
        ({"expected": 112}, "deadlock.*wait for an mbarrier at hopper.cuh:"),
        ({"expected": 144}, "deadlock.*wait for an mbarrier at hopper.cuh:"),
    ],
)
def test_misuse_of_copies_is_reported(emulator: Emulator, change: dict[str, Any], message: str) -> None:
    copy_box(emulator, COLUMNS, IMAGE, (0, -1, -1, 0), rows=8)
    with pytest.raises(LaunchError, match=f"(?s){message}"):
        copy_box(emulator, COLUMNS, IMAGE, **{"start": (0, -1, -1, 0), "rows": 8} | change)


def test_a_map_is_tiled_or_im2col(emulator: Emulator) -> None:
    with pytest.raises(LaunchError, match=r"copy_im2col at hopper.cuh:\d+: the map is tiled"):
        copy_box(emulator, COLUMNS, IMAGE, (0, -1, -1, 0), rows=8, encoded=emulator.encode(TILED))
    with pytest.raises(LaunchError, match=r"copy_tiled at hopper.cuh:\d+: the map is an im2col one"):
        copy_box(emulator, TILED, IMAGE, (0, 0, 0, 0), rows=4, encoded=emulator.encode(COLUMNS))


def test_a_block_waits_for_its_copies(emulator: Emulator) -> None:
    def copy_often() -> None:
        for seed in range(20):  # in some orders the copy completes before the block ends
            emulator.seed(seed)
            copy_box(emulator, TILED, IMAGE, (0, 0, 0, 0), rows=4, mistake=NOBODY_WAITS)

    with pytest.raises(LaunchError, match="ended while 1 copies into its shared memory were incomplete"):
        copy_often()


def test_a_copy_overwrites_what_was_fenced(emulator: Emulator, race: bool) -> None:
    if not race:
        pytest.skip("only race mode reports this")
    with pytest.raises(LaunchError, match=r"copy_tiled at hopper.cuh:\d+ writes through the async proxy what thread"):
        copy_box(emulator, TILED, IMAGE, (0, 0, 0, 0), rows=4, mistake=NO_PROXY_FENCE)


def test_a_copy_reads_inside_of_the_tensor_only(emulator: Emulator, race: bool) -> None:
    if not race:
        pytest.skip("only race mode reports this")
    spec = spec_of(IMAGE, "bfloat16", 32, box=(8, 8, 1, 1))
    copy_box(emulator, spec, IMAGE, (0, -2, 0, 0), rows=8)
    too_large = spec._replace(extent=(8, 5, 6, 2))  # one line more than the images have
    with pytest.raises(LaunchError, match=r"outside of memory: the thread reads 16 bytes .* at hopper.cuh:"):
        copy_box(emulator, too_large, IMAGE, (0, 0, 5, 1), rows=8)


LIMITS: list[tuple[TensorMapSpec, dict[str, Any]]] = [
    (TILED, {"address": 8}),
    (TILED, {"extent": (8, 0, 5, 2)}),
    (TILED, {"stride": (24, 80, 400)}),
    (TILED, {"stride": (16, 80, 1 << 40)}),
    (TILED, {"stride": (16, 80, 416)}),
    (TILED, {"stride": (8, 80, 400)}),
    (TILED, {"extent": (16, 5, 5, 2)}),
    (TILED, {"box": (4, 4, 1, 1)}),
    (TILED, {"box": (24, 4, 1, 1)}),
    (TILED, {"box": (0, 4, 1, 1)}),
    (TILED, {"box": (8, 257, 1, 1)}),
    (TILED, {"box": (8, 4, 0, 1)}),
    (TILED, {"element_stride": (1, 9, 1, 1)}),
    (TILED, {"element_stride": (1, 1, 0, 1)}),
    (COLUMNS, {"lower": (-129, -1)}),
    (COLUMNS, {"upper": (-1, 128)}),
    (COLUMNS, {"upper": (-6, -1)}),
    (COLUMNS, {"channels": 4}),
    (COLUMNS, {"channels": 24}),
    (COLUMNS, {"pixels": 1025}),
    (COLUMNS, {"element_stride": (1, 0, 2, 1)}),
]


@pytest.mark.parametrize(("spec", "change"), LIMITS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_limits_of_the_encoders(emulator: Emulator, spec: TensorMapSpec, change: dict[str, Any]) -> None:
    emulator.encode(spec)
    assert spec.refused() is None
    refused = spec._replace(**change)
    assert refused.refused() is not None
    with pytest.raises(LaunchError, match="encode_tensor_map: "):
        emulator.encode(refused)
