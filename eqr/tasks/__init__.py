"""The tasks: one file each, its kernels beside it."""
