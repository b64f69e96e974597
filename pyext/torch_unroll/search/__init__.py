"""Architecture search on small networks: grid, random and Hyperband (Optuna), DARTS, and the neural tangent kernel as a score."""
