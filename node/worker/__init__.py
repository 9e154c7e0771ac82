"""The training process: torch lives here, and may die without harm to the node."""
