"""Runs experiments, reads them as one table, and writes the report of them all."""

import tempfile
from pathlib import Path

from snipjax import config, experiment, results

runs = Path(tempfile.mkdtemp())
for sparsity in (0.9, 0.98):
    settings = config.default()  # LeNet-300-100 on scikit-learn's digits
    settings.prune.sparsity = sparsity
    settings.train.steps = 200
    experiment.run(settings, runs / f"snip-{sparsity}")

networks = results.read(runs)  # a row for each network, a column for each field
columns = ["method", "prune.sparsity", "kept", "prunable", "test_error"]
print(networks[columns].to_string(index=False))

html, markdown = results.report([runs], runs / "report")
print(f"open {html}")
