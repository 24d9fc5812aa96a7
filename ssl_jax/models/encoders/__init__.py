"""Encoders: frames to hidden states."""
