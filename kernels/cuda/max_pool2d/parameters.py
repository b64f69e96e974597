"""Mirrors of the structs of parameters.cuh."""

from __future__ import annotations

import ctypes

from ...shapes import MaxPool2dShape


class MaxPool2dDense(ctypes.Structure):
    """A dense tensor, and the part of it that a block of the staged variant computes."""

    _fields_ = [
        ("planes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("inner", "planes_per_block", "rows_per_block")),
    ]


def _parameters(name: str, *pointers: str) -> type[ctypes.Structure]:
    fields = [*((pointer, ctypes.c_void_p) for pointer in pointers), ("shape", MaxPool2dShape), ("dense", MaxPool2dDense)]
    return type(name, (ctypes.Structure,), {"_fields_": fields, "__doc__": f"`{name}` of parameters.cuh."})


MaxPool2dForwardParameters = _parameters("MaxPool2dForwardParameters", "x", "y", "offsets", "lengths")
MaxPool2dBackwardParameters = _parameters("MaxPool2dBackwardParameters", "dy", "offsets", "dx")
MaxPool2dGatherParameters = _parameters("MaxPool2dGatherParameters", "ddx", "offsets", "ddy")
MaxPool2dIndicesParameters = _parameters("MaxPool2dIndicesParameters", "offsets", "indices")
