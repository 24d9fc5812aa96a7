"""Frontends: waveform to frames."""
