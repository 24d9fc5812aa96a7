"""Audio to batches: source -> crop -> bucket -> batch, with numpy and grain."""
