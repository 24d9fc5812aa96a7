"""Meshes, processes and chips."""
