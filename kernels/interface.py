"""Mirrors of the structs that Python passes through the C interface, which is declared in cuda/platform/interface.h."""

from __future__ import annotations

import ctypes


class CLaunchConfig(ctypes.Structure):
    """Mirror of `LaunchConfig`."""

    _fields_ = [
        *((name, ctypes.c_uint32 * 3) for name in ("grid", "block", "cluster")),
        ("shared_bytes", ctypes.c_uint32),
        ("cooperative", ctypes.c_uint32),
    ]


class CTensorMapSpec(ctypes.Structure):
    """Mirror of `TensorMapSpec`."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("extent", ctypes.c_uint64 * 4),
        ("stride", ctypes.c_uint64 * 3),
        ("box", ctypes.c_uint32 * 4),
        ("element_stride", ctypes.c_uint32 * 4),
        ("lower", ctypes.c_int32 * 2),
        ("upper", ctypes.c_int32 * 2),
        ("channels", ctypes.c_uint32),
        ("pixels", ctypes.c_uint32),
        ("type", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
        ("im2col", ctypes.c_int32),
    ]


class CSequenceLaunch(ctypes.Structure):
    """Mirror of `SequenceLaunch`."""

    _fields_ = [("config", CLaunchConfig), ("kernel", ctypes.c_int32), ("parameters", ctypes.c_uint32)]


class CSequencePatch(ctypes.Structure):
    """Mirror of `SequencePatch`."""

    _fields_ = [
        ("offset", ctypes.c_int64),
        ("at", ctypes.c_uint32),
        ("pointer", ctypes.c_uint16),
        ("map", ctypes.c_int16),
    ]


class CLaunchSequence(ctypes.Structure):
    """Mirror of `LaunchSequence`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("launches", "patches", "maps", "parameters")),
        *((name, ctypes.c_uint32) for name in ("launch_count", "patch_count", "parameter_bytes", "aligned_count")),
    ]


#: What `torch_unroll_launch_sequence` returns, having launched nothing, if a pointer is less aligned than in the recording.
NOT_ALIGNED = -1

#: The names of the structs and their mirrors.
INTERFACE: dict[str, type[ctypes.Structure]] = {
    "LaunchConfig": CLaunchConfig,
    "TensorMapSpec": CTensorMapSpec,
    "SequenceLaunch": CSequenceLaunch,
    "SequencePatch": CSequencePatch,
    "LaunchSequence": CLaunchSequence,
}
