"""Subjects of bench, ahead-of-time compilation, HLO reading, calibration."""
