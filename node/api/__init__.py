"""The HTTP side of a node: JSON, server-sent events, metrics and the explorer on one port."""
