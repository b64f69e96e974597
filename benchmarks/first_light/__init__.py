"""First light on a GPU: what its hardware does and how fast, measured by small CUDA programs, and golden data for the emulator."""
