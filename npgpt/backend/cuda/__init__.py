"""Kernels for an NVIDIA GPU: CuPy arrays in, CUDA C that is compiled on the reader's machine.

A layer has two files of its own name here: rmsnorm.cu, the kernels, and rmsnorm.py, which
allocates what they fill and launches them. How that is done stands in compile.py, once.
"""
