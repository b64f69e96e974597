"""First light on a GPU: what its hardware does and how fast, by small CUDA programs; and golden data for the emulator."""
