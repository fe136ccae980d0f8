"""The table of costs."""

import jax
import jax.numpy as jnp

from snipjax import shrink
from tests.shrink.networks import noise


def test_costs_of_a_mask_of_units_and_of_single_connections() -> None:
    params = {"v": noise((3, 3)), "w": noise((3, 3), 1)}
    # A unit, and a single connection to another.
    columns = jnp.array([[True, True, False]] * 3).at[0, 1].set(False)
    mask = {"v": columns, "w": jnp.ones((3, 3), bool)}
    found = shrink.cost(
        lambda params, label, x: jnp.tanh(x @ params["v"]) @ params["w"],
        params,
        mask,
        7.0,  # the batch is of the first input that has examples
        noise((5, 3)),
        repeats=1,
    )
    dense, masked, _ = found.variants
    assert [v.parameters for v in found.variants] == [18, 18, 12]
    assert [v.kept for v in found.variants] == [18, 14, 11]
    assert [v.dense_bytes for v in found.variants] == [72, 72, 48]
    # A bit for each entry of v; w is stored as it is.
    assert masked.bitmask_bytes == 4 * 5 + 2 + 4 * 9
    # Values, columns, and the first of each of three rows.
    assert masked.csr_bytes == 8 * 5 + 4 * (3 + 1) + 4 * 9
    assert [v.operations for v in found.variants] == [180, 180, 120]
    assert all(v.forward_seconds > 0 and v.step_seconds > 0 for v in found.variants)
    assert dense.peak_bytes > 0
    if jax.default_backend() == "cpu":
        assert [row.name for row in found.csr] == ["v"]
    assert "step_seconds" in str(found)
