"""A whole network of real processes on one machine, for trying, showing and testing."""
