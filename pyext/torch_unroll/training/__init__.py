"""Training programs on real data: what the tests hold to an accuracy and `make bench` runs."""
