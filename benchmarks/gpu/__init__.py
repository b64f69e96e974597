"""`make gpu` checks every kernel exactly, measures the hardware's ceilings, and times cases, within minutes on a GPU."""
