"""Where compiled kernels are kept, and whether the CPU computes what they ask for."""
