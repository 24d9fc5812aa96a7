"""Measurements, side by side in one run, of what is claimed to be fast."""
