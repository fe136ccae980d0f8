"""Shared types, checks and pytree names of the core."""
