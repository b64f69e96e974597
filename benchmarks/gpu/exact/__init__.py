"""Cases with exactly known results, which cover every kernel in geometries that each test something different."""
