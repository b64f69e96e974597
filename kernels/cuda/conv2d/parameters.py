"""ctypes mirrors of the parameter structs of convolution kernels; `kernels/layout.py` checks that both agree.

The structs are those of `parameters.cuh` and the epilogues of `epilogue.cuh`.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ...shapes import Conv2dShape
from ...tensor_map import TensorMap

#: kMostResidues of parameters.cuh: this many images fit into the 4 KiB of a kernel's parameters.
MOST_RESIDUES = 16

Field = tuple[str, type[Any]]


def _int32(*names: str) -> list[Field]:
    return [(name, ctypes.c_int32) for name in names]


def _pointers(*names: str) -> list[Field]:
    return [(name, ctypes.c_void_p) for name in names]


# ---- parts of structs ---------------------------------------------------------------------------------------------------


class CWalks(ctypes.Structure):
    """Mirror of `Walks`."""

    _fields_ = _int32("a", "b", "c", "channels_inner")


class CSplits(ctypes.Structure):
    """Mirror of `Splits`."""

    _fields_ = [*_pointers("sums"), *_int32("count", "step")]


class CBiasEpilogue(ctypes.Structure):
    """Mirror of `BiasEpilogue`."""

    _fields_ = _pointers("bias", "bias2")


class CNoEpilogue(ctypes.Structure):
    """Mirror of `NoEpilogue`, which is empty; C++ gives it one byte."""

    _fields_ = [("_padding", ctypes.c_uint8)]


class CFilterGradient(ctypes.Structure):
    """Mirror of `FilterGradient`."""

    _fields_ = [*_pointers("dw", "db"), ("stride", ctypes.c_int64 * 4), *_int32("channels", "outputs")]


class CIm2colAxis(ctypes.Structure):
    """Mirror of `Im2colAxis`."""

    _fields_ = _int32("pixels", "start", "up", "taps", "step", "first", "every", "residue")


class CIm2colImage(ctypes.Structure):
    """Mirror of `Im2colImage`."""

    _fields_ = [("map", TensorMap), ("vertical", CIm2colAxis), ("horizontal", CIm2colAxis)]


class COperandsInMemory(ctypes.Structure):
    """Mirror of `OperandsInMemory`."""

    _fields_ = [
        *_pointers("dy", "filter"),
        ("dy_stride", ctypes.c_int64 * 4),
        ("filter_stride", ctypes.c_int64 * 4),
        *_int32("P", "Q"),
    ]


# ---- simt and mma --------------------------------------------------------------------------------------------------------


class Conv2dFpropParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("x", "w", "y"),
        ("shape", Conv2dShape),
        ("walks", CWalks),
        ("splits", CSplits),
        ("epilogue", CBiasEpilogue),
    ]


class Conv2dDgradParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("dy", "w", "dx"),
        ("shape", Conv2dShape),
        ("walks", CWalks),
        ("splits", CSplits),
        ("epilogue", CNoEpilogue),
    ]


class Conv2dWgradParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("dy", "x", "sums", "bias_sums"),
        ("gradient", CFilterGradient),
        ("shape", Conv2dShape),
        ("walks", CWalks),
        *_int32("splits", "pixels_per_split", "accumulate", "product_blocks"),
    ]


# ---- wgmma ---------------------------------------------------------------------------------------------------------------


def _aligned_to_maps(name: str, fields: list[Any]) -> type[Any]:
    """Makes a structure whose size is, as in C++, a multiple of 64 bytes, the alignment of its tensor maps."""
    size = ctypes.sizeof(type(name, (ctypes.Structure,), {"_fields_": fields}))
    padding = ("_padding", ctypes.c_uint8 * (-size % 64))
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, padding], "__doc__": "Mirror of the struct of this name."})


def _conv2d_wgmma_parameters(images: int, epilogue: type[ctypes.Structure]) -> type[Any]:
    fields: list[Any] = [
        ("images", CIm2colImage * images),
        ("filter", TensorMap),
        *_pointers("result", "sums"),
        ("stride", ctypes.c_int64 * 4),
        *_int32("N", "height", "width", "groups", "channels", "depth_channels", "stride_h", "stride_w"),
        *_int32("span", "splits", "steps_per_split", "tiles", "walk"),
        ("operands", COperandsInMemory),
        ("epilogue", epilogue),
    ]
    return _aligned_to_maps("Conv2dWgmmaParameters", fields)


#: Conv2dWgmmaParameters of fprop, which gathers from one image, and of dgrad, which has one for each residue.
Conv2dFpropWgmmaParameters = _conv2d_wgmma_parameters(1, CBiasEpilogue)
Conv2dDgradWgmmaParameters = _conv2d_wgmma_parameters(MOST_RESIDUES, CNoEpilogue)
Conv2dWgradWgmmaParameters = _aligned_to_maps(
    "Conv2dWgradWgmmaParameters",
    [
        ("x", CIm2colImage),
        ("dy", TensorMap),
        *_pointers("dy_data"),
        ("dy_stride", ctypes.c_int64 * 4),
        *_pointers("sums", "bias_sums"),
        ("gradient", CFilterGradient),
        *_int32("N", "groups", "C", "K", "span", "splits", "steps_per_split", "tiles", "accumulate", "product_blocks", "walk"),
    ],
)


# ---- what runs before and after products ----------------------------------------------------------------------------------


class PackChannelsParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("from", "to"),
        ("stride", ctypes.c_int64 * 4),
        *_int32("channels", "padded", "images", "padded_images", "H", "W", "groups", "pixels_first"),
    ]


class Conv2dSumSplitsParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("sums", "bias_sums", "dw", "db"),
        ("shape", Conv2dShape),
        *_int32("splits", "channels_inner", "channels", "outputs"),
    ]


class Conv2dSumImageSplitsParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [
        *_pointers("sums", "result"),
        ("stride", ctypes.c_int64 * 4),
        *_int32("N", "channels", "H", "W", "splits"),
        ("epilogue", CBiasEpilogue),
    ]


class Im2colParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [*_pointers("x", "columns"), ("shape", Conv2dShape)]


class Col2imParameters(ctypes.Structure):
    """Mirror of the struct of this name."""

    _fields_ = [*_pointers("columns", "x"), ("shape", Conv2dShape)]
