"""Data sets, in memory or streamed."""
