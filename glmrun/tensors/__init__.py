"""The tensors as the kernels read them."""
