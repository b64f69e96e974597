"""Number types, the twin of cuda/platform/types.h: numbers that are stored in 16 bits are computed in fp32.

Numba has no bfloat16, so an array of uint16 always holds the bits of bfloat16. In Numba's simulator (NUMBA_ENABLE_CUDASIM=1),
kernels and these functions run as plain Python on numpy arrays; for a GPU, the `overload`s of these functions are compiled.
"""

from __future__ import annotations

import numpy as np
from numba import cuda
from numba.core import config

if not config.ENABLE_CUDASIM:
    from numba.cuda import libdevice, types
    from numba.cuda.extending import overload

#: Whether kernels run in the simulator. Blocks are small there, because a thread costs milliseconds instead of nanoseconds.
SIMULATED = bool(config.ENABLE_CUDASIM)
#: Rows and columns of the tile of a matrix product that a block owns; each of its TILE x TILE threads owns one element.
TILE = 2 if SIMULATED else 16
#: Threads of a block in kernels that have no tiles.
THREADS = 4 if SIMULATED else 256


def widen(value):
    """Returns a stored number in its accumulator type: fp64 for fp64, fp32 for every other type."""
    if isinstance(value, np.uint16):
        return (np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value) if isinstance(value, np.float16) else value


def narrow(value, array):
    """Returns an accumulated number in the type of an array's elements, rounded to nearest even."""
    if array.dtype != np.uint16:
        return array.dtype.type(value)
    wide = np.float32(value)
    if np.isnan(wide):
        return np.uint16(0x7FFF)
    bits = int(wide.view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def zero(array):
    """Returns 0 in the accumulator type of an array's elements."""
    return np.float64(0) if array.dtype == np.float64 else np.float32(0)


if not SIMULATED:

    @overload(widen, target="cuda")
    def _widen(value):
        if value == types.uint16:
            return lambda value: libdevice.int_as_float(types.int32(types.uint32(value) << types.uint32(16)))
        if value == types.float16:
            return lambda value: types.float32(value)
        return lambda value: value

    @cuda.jit(device=True)
    def _bfloat16_bits(value):
        if value != value:
            return types.uint16(0x7FFF)
        bits = types.uint32(libdevice.float_as_int(types.float32(value)))
        odd = (bits >> types.uint32(16)) & types.uint32(1)
        return types.uint16((bits + types.uint32(0x7FFF) + odd) >> types.uint32(16))

    @overload(narrow, target="cuda")
    def _narrow(value, array):
        to = array.dtype
        if to == types.uint16:
            return lambda value, array: _bfloat16_bits(value)
        if to == types.float16:
            return lambda value, array: types.float16(types.float32(value))
        return lambda value, array: to(value)

    @overload(zero, target="cuda")
    def _zero(array):
        if array.dtype == types.float64:
            return lambda array: types.float64(0)
        return lambda array: types.float32(0)
