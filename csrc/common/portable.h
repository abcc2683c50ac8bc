// What lets one header be read by the host compiler and by nvcc.
#pragma once

#if defined(__CUDACC__)
#define PYAR_HOST_DEVICE __host__ __device__ __forceinline__
#else
// always_inline: a helper that is emitted out of line in a translation unit built for AVX-512 could be
// picked by the linker for everybody else.
#define PYAR_HOST_DEVICE inline __attribute__((always_inline))
#endif
