"""Checkpoints of any kind in and out of a home, streamed (docs/spec/checkpoints.md)."""
