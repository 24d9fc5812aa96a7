"""Finished runs to pages and pictures."""
