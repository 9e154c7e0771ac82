"""TLS 1.3 connections between nodes, for what is counted in megabytes (docs/spec/links.md)."""
