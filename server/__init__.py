"""Flower ServerApp: the round loop, aggregation and checkpoints."""
