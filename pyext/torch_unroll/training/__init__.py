"""Training programs for handwritten digits (two of which `make bench` runs), the adding problem, and pictures in folders."""
