"""Vectors for Numba, and the CPU that they are compiled for."""
