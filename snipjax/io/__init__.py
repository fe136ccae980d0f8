"""Files: weights, masks."""
