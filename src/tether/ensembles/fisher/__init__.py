"""Fisher-weighted averaging: its formulas, and the method in a run."""
