"""Small CUDA programs that measure what a GPU does and how fast, and that record golden data for the emulator."""
