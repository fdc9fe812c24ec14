"""Kernels for a CPU: NumPy arrays in, machine code that Numba makes from Python.

Nothing here is imported where Numba is missing, or where NPGPT_KERNELS=off: see
npgpt.backend.kernels_enabled.
"""
