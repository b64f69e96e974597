"""`make gpu`: within minutes on a GPU, checks every kernel exactly, measures the hardware's ceilings, and times cases."""
