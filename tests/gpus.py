"""GPUs as plans see them, under names that no driver reports, so that no table of measurements has entries for them."""

from __future__ import annotations

from torch_unroll.kernels.hardware import Device

A100 = Device(multiprocessors=108, capability=(8, 0), shared_bytes_per_block=163 << 10, l2_bytes=40 << 20, name="an A100")
L40S = Device(multiprocessors=142, capability=(8, 9), shared_bytes_per_block=99 << 10, l2_bytes=96 << 20, name="an L40S")
H200 = Device(multiprocessors=132, capability=(9, 0), shared_bytes_per_block=227 << 10, l2_bytes=50 << 20, name="an H200")
H100 = Device(multiprocessors=132, capability=(9, 0), shared_bytes_per_block=227 << 10, l2_bytes=50 << 20, name="an H100")
B200 = Device(multiprocessors=148, capability=(10, 0), shared_bytes_per_block=227 << 10, l2_bytes=126 << 20, name="a B200")
