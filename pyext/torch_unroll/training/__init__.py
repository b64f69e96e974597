"""Training programs on real data, whose accuracy the tests check and which `make bench` runs."""
