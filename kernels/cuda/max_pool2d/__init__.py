"""Max pooling: README.md describes the variants and the order in which to read the files."""
