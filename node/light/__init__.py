"""A light client of one node's API, which believes nothing it says (docs/spec/light-client.md)."""
