"""Losses as pure functions; each declares whether it is decomposable over patients."""
