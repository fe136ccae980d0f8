"""Writes a selection: which connections are kept, given the scores.

This one keeps connections until they hold a share of each layer's saliency, so that
layers whose saliency is in few connections become sparse.
"""

import functools

import jax
import jax.numpy as jnp

from snipjax import masks, pruning


def by_share(scores, sparsity, prunable=masks.kernels, *, share=0.5):
    """Returns the mask of the fewest connections with a share of the saliency."""
    del sparsity  # this selection has a density of its own

    def rule(leaves, sparsity):
        return [holds_share(leaf) for key_path, leaf in leaves]

    def holds_share(leaf):
        order = jnp.argsort(-leaf.ravel())
        before = jnp.cumsum(leaf.ravel()[order]) - leaf.ravel()[order]
        keep = before < share * jnp.sum(leaf)
        return jnp.zeros(leaf.size, bool).at[order].set(keep).reshape(leaf.shape)

    return masks.select_leaves(scores, None, prunable, rule)


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "in": jax.random.normal(keys[0], (8, 64)),
    "out": jax.random.normal(keys[1], (64, 1)),
}
batch = jax.random.normal(keys[2], (100, 8)), jax.random.normal(keys[3], (100, 1))

select = functools.partial(by_share, share=0.5)
scores, mask = pruning.score_and_mask(loss_fn, params, batch, select=select)
print(masks.summary(mask))
for name in scores:
    share = jnp.sum(scores[name] * mask[name]) / jnp.sum(scores[name])
    print(f"{name}: {share:.3f} of the saliency")
