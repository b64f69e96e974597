"""Measures the ops beside what a user would otherwise call: `python -m benchmarks --help`; the rules stand in README.md here."""
