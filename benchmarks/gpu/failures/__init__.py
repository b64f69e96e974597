"""A wrong result taken apart without the GPU that gave it: what is kept of it, and what it looks like."""
