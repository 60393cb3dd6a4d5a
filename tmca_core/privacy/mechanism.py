"""What a private step does, in public numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mechanism:
    """What every step of a site does; all of it is public.

    Attributes:
        noise_multiplier: σ, standard deviation of the noise over `clip`.
        clip: C, bound on the norm of a patient's gradient.
        sample_rate: q, probability of each patient in each step.
        expected: b > 0, what sums are divided by; a constant that is not computed from who was drawn.
        steps: of a round.
    """

    noise_multiplier: float
    clip: float
    sample_rate: float
    expected: float
    steps: int
