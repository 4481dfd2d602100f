"""VRF: its formulas, the method, and its files."""
