"""Prunes on eight devices: parameters, scores and mask lie where you put them.

The devices are simulated on the CPU; on real ones, leave out that line.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from snipjax import masks, pruning

jax.config.update("jax_num_cpu_devices", 8)


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "in": jax.random.normal(keys[0], (8, 64)),
    "out": jax.random.normal(keys[1], (64, 1)),
}
batch = jax.random.normal(keys[2], (96, 8)), jax.random.normal(keys[3], (96, 1))
_, mask_of_one = pruning.prune(loss_fn, params, batch, sparsity=0.9)

# Four parts of the batch, and two of the hidden units.
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
columns = NamedSharding(mesh, PartitionSpec(None, "model"))
rows = NamedSharding(mesh, PartitionSpec("model"))
params = jax.device_put(params, {"in": columns, "out": rows})
batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))

params, mask = pruning.prune(loss_fn, params, batch, sparsity=0.9)
jax.debug.visualize_array_sharding(mask["in"])
same = sum(int(jnp.sum(mask[name] == mask_of_one[name])) for name in mask)
print(masks.summary(mask))
print(f"{same} of 576 entries are as on one device")
