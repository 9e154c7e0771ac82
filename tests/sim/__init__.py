"""A network of real Simplex cores under one event heap and one seed (docs/spec/consensus.md)."""
