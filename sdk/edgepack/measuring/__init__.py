"""Questions about a model: how fast, how good, and whether it is still the same."""
