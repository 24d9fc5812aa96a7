"""Pallas kernels, where XLA's own programs move too much memory.

Each computes what the plain functions of `ssl_jax.models` do, which are what
they are tested against, and what runs elsewhere.
"""
