"""The rehearsal: a federation of real processes on one machine, and everything that may befall it."""
