"""Cases whose results are known exactly: every kernel of the tables, over geometries that each tell something."""
