"""The best round so far and the rule for stopping early: functions of the history alone, which lies in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def best_round(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The round with the highest mean validation Dice, the earliest of equals; None where no round was validated."""
    validated = [record for record in history if record["dice_image"] is not None]
    return max(validated, key=lambda record: (record["dice_image"], -record["round"]))["round"] if validated else None


def stalled(history: Sequence[Mapping[str, Any]], patience: int, min_gain: float) -> bool:
    """Whether the last gain lies `patience` rounds back, or more.

    The first validation is a gain; a later one is where it beats the last gain's Dice by more than `min_gain`.

    Args:
        history: records with `round` and `dice_image` (None in rounds without validation), rounds ascending.
        patience: rounds, not validations; 0: never.
        min_gain: Dice.
    """
    gained: Mapping[str, Any] | None = None
    for record in history:
        dice = record["dice_image"]
        if dice is not None and (gained is None or dice > gained["dice_image"] + min_gain):
            gained = record
    return bool(patience and gained is not None and history[-1]["round"] - gained["round"] >= patience)
