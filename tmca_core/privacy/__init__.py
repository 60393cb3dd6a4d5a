"""Privacy: accounting, planning, the hospital's ledger and policy, randomness that nobody can guess."""
