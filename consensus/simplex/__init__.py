"""Simplex consensus as a sans-I/O state machine. Start reading at `core.Simplex`."""
