"""The table of costs."""

import jax
import jax.numpy as jnp

from snipjax import masks, shrink
from tests.shrink.networks import noise


def test_costs_of_a_mask_of_units_and_of_single_connections() -> None:
    params = {"v": noise((3, 4)), "w": noise((4, 2), 1)}
    mask = {
        "v": jnp.array([[True, True, False, False]] * 3),
        "w": jnp.array([[True, False]] + [[True, True]] * 3),
    }
    found = shrink.cost(
        lambda params, label, x: jnp.tanh(x @ params["v"]) @ params["w"],
        params,
        mask,
        7.0,  # the batch is of the first input that has examples
        noise((5, 3)),
        repeats=1,
    )
    dense, masked, _ = found.variants
    assert [v.parameters for v in found.variants] == [20, 20, 10]
    assert [v.kept for v in found.variants] == [20, 13, 9]
    assert [v.dense_bytes for v in found.variants] == [80, 80, 40]
    # A bit for each of 12 and 8 entries.
    assert masked.bitmask_bytes == 4 * 13 + 2 + 1
    # Values, columns, and the first of each of 3 and 4 rows.
    assert masked.csr_bytes == 8 * 13 + 4 * (4 + 5)
    assert [v.operations for v in found.variants] == [200, 200, 100]
    assert all(v.forward_seconds > 0 and v.step_seconds > 0 for v in found.variants)
    assert dense.peak_bytes > 0
    if jax.default_backend() == "cpu":
        assert [row.name for row in found.csr] == ["v", "w"]
    assert "step_seconds" in str(found)
    assert masks.sparsity(mask) == 0.35
