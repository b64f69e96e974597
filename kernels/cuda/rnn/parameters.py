"""ctypes mirrors of the structs in parameters.cuh and elman.cuh."""

from __future__ import annotations

import ctypes

from ...shapes import RnnShape


class StepStride(ctypes.Structure):
    """`StepStride` of parameters.cuh."""

    _fields_ = [("t", ctypes.c_int64), ("n", ctypes.c_int64)]


class ElmanCell(ctypes.Structure):
    """`ElmanCell` of elman.cuh. `nonlinearity` is an index into `NONLINEARITIES` of the engines' interface."""

    _fields_ = [("nonlinearity", ctypes.c_int32)]


class RnnMatrix(ctypes.Structure):
    """`RnnMatrix` of parameters.cuh."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64)]


class RnnParameters(ctypes.Structure):
    """`RnnParameters` of parameters.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "h0", "h", "h_n", "dh", "dh_n", "dz", "dh0")),
        ("w", RnnMatrix * 2),
        *((name, ctypes.c_void_p) for name in ("lengths", "step_offsets")),
        *((name, StepStride) for name in ("z_stride", "h_stride", "dh_stride", "dz_stride")),
        *((name, ctypes.c_int32) for name in ("aligned_w", "aligned_state", "products", "step", "D")),
        ("shape", RnnShape),
        ("cell", ElmanCell),
    ]


class RnnCellParameters(ctypes.Structure):
    """`RnnCellParameters` of parameters.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh", "h_next", "dh_next", "dz", "dx", "dh")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "h", "w_ih", "w_hh", "h_next", "dh_next")),
        ("shape", RnnShape),
        ("aligned", ctypes.c_int32),
        ("cell", ElmanCell),
    ]
