"""The backbone: frontend, projection, mask, positions, Transformer."""
