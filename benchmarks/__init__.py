"""Compares the ops with what a user would otherwise call. See `python -m benchmarks --help`, and README.md for the rules."""
