"""Checkpoints: saving, reading, checksums."""
