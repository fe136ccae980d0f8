"""Tests of snipjax.

They compile ten thousand small programs and run each a few times, so that programs are
compiled with few optimizations. ``XLA_FLAGS= pytest ...`` compiles as users do.
"""

import gc
import os

FEW_OPTIMIZATIONS = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", FEW_OPTIMIZATIONS)
# Tracing makes many objects, and looking through them takes a twentieth of the time.
gc.set_threshold(200_000, 20, 100)


def devices(number: int) -> dict[str, str]:
    """Returns the environment of a process with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={number}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
