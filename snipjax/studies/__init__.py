"""Studies: sweeps and what they show."""
