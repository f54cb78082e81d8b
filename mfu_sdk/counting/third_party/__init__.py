"""What the kernels of other libraries cost; none of them is imported: each is known by its name."""
