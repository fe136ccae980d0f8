"""Prunes a pretrained language model from a safetensors file, and writes it again.

The file of Hugging Face's ``gpt2`` takes the place of this tiny one as it stands.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from snipjax import masks, pruning
from snipjax.io import gpt2, safetensors
from snipjax.models import transformer

directory = Path(tempfile.mkdtemp())
config = transformer.Config(vocab_size=101, length=16, width=64, depth=1, heads=1)
model = transformer.Transformer(config)
tokens = jax.random.randint(jax.random.key(0), (4, 16), 0, 101)

# A file as Hugging Face publishes it, of random weights.
params = model.init(jax.random.key(1), tokens)["params"]
safetensors.save(directory / "model.safetensors", gpt2.to_tensors(params))

# Tensors are read when they are asked for; embeddings stay dense.
tensors = safetensors.load(directory / "model.safetensors")
params = gpt2.from_tensors(tensors)
params, mask = pruning.prune(
    transformer.next_token_loss(model),
    params,
    tokens,
    sparsity=0.5,
    select=masks.layerwise_topk,
    prunable=masks.excluding(masks.kernels, "tokens*", "positions*"),
)
print(masks.summary(mask))

pruned = gpt2.to_tensors(params, like=tensors)
safetensors.save(directory / "pruned.safetensors", pruned, tensors.metadata)
written = safetensors.load(directory / "pruned.safetensors")
zeros = sum(int(jnp.sum(written[name] == 0)) for name in written if "mlp.c_fc" in name)
print(f"{zeros} zeros in the written MLPs")
