"""A trained encoder and its uses."""
