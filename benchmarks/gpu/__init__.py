"""`make gpu`: a quarter of an hour on a GPU turned into evidence: every kernel exact, the hardware's ceilings, and timings."""
