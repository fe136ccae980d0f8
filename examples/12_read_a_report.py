"""Runs an experiment, reads its networks as a table, and writes its report."""

import tempfile
from pathlib import Path

from snipjax import config, experiment, results

runs = Path(tempfile.mkdtemp())
settings = config.default()  # LeNet-300-100 on scikit-learn's digits
settings.prune.sparsity = 0.98
settings.train.steps = 100
settings.seeds = 2
experiment.run(settings, runs / "snip")

networks = results.read(runs)  # a row for each network, a column for each field
columns = ["method", "seed", "prune.sparsity", "kept", "prunable", "test_error"]
print(networks[columns].to_string(index=False))

html, markdown = results.report([runs], runs / "report")
print(f"open {html}")
