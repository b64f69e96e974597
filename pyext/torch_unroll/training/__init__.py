"""Training programs: handwritten digits, the adding problem, and pictures in folders. `make bench` trains the networks of
`digits`."""
