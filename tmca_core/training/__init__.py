"""Step, loop, optimiser, evaluation and metrics."""
