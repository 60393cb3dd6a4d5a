"""What a hospital sees of its own part: what it has spent, what was asked of it, what it gains, and the way out."""
