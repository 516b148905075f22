"""Statistics of positions."""
