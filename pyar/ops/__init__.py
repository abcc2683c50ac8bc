"""The operations: native kernels where there are any, the reference elsewhere."""
