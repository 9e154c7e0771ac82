"""The two programs: `blyan-node` (operator) and `blyan` (contributor and reader)."""
