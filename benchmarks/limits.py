"""The environment variables that keep everybody to the same threads and instructions; imports none who read them."""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# What keeps everybody to an instruction set: pyar; XLA, without the library for its products (YNNPACK) that cannot be
# limited; PyTorch's own kernels and its compiler; oneDNN, which both use; MKL and OpenBLAS; numba, with no features but
# the name's.
LEVEL_VARIABLES = {
    "avx2": {
        "PYAR_CPU_LEVEL": "avx2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
        "ATEN_CPU_CAPABILITY": "avx2",
        "TORCHINDUCTOR_CPP_MARCH": "haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
    }
}


def set_variables(threads: int, level: str | None = None) -> None:
    """Must come before the libraries that read them are imported. JAX has none for threads: it takes the cores it is
    pinned to."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    os.environ.update(LEVEL_VARIABLES[level] if level else {})
