"""FLOPs, the budget that follows from them, and the reports on it."""
