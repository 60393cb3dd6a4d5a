"""Audits: measure what leaks, hold it against the claim, and be able to fail."""
