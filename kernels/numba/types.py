"""Number types, the twin of cuda/platform/types.h: what is stored in 16 bits is computed in fp32.

bfloat16 travels as its bits, in uint16, which is the only meaning of uint16 here. In Numba's simulator (NUMBA_ENABLE_CUDASIM=1)
kernels are plain Python on numpy arrays, and so are these functions; on a GPU their `overload`s are compiled.
"""

from __future__ import annotations

import numpy as np
from numba import cuda
from numba.core import config

if not config.ENABLE_CUDASIM:
    from numba.cuda import libdevice, types
    from numba.cuda.extending import overload

#: A thread costs nanoseconds on a GPU, and milliseconds in the simulator.
SIMULATED = bool(config.ENABLE_CUDASIM)
#: Rows and columns of the tile of a matrix product that a block owns: 256 threads, one an element.
TILE = 2 if SIMULATED else 16
#: Threads of a block where each owns elements.
THREADS = 4 if SIMULATED else 256


def widen(value):
    """A stored number as its accumulator type: fp32 for every type but fp64."""
    if isinstance(value, np.uint16):
        return (np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value) if isinstance(value, np.float16) else value


def narrow(value, array):
    """An accumulated number as the type of an array's elements, rounded to nearest even."""
    if array.dtype != np.uint16:
        return array.dtype.type(value)
    wide = np.float32(value)
    if np.isnan(wide):
        return np.uint16(0x7FFF)
    bits = int(wide.view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def zero(array):
    """0 in the accumulator type of an array's elements."""
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
