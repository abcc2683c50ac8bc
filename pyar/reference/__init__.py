"""The mathematics in plain PyTorch, any dtype and any device: what the kernels are checked against, never optimised."""
