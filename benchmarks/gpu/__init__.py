"""`make gpu`: minutes on a GPU turned into evidence: every kernel exact, the hardware's ceilings, and timings."""
