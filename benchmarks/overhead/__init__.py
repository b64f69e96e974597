"""The host time of a call: what Python, torch and the C interface take before a kernel runs."""
