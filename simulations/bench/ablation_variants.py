"""The rows of the ablation table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tmca_core.dotted import Scalar


@dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        name: for the command line.
        asks: what stands in the table.
        settings: changes to the configuration.
    """

    name: str
    asks: str
    settings: Mapping[str, Scalar]


def _variants(network: str, rows: Mapping[str, tuple[str, Mapping[str, Scalar]]]) -> list[Variant]:
    return [Variant(f"{network}{name}", f"`{network}` {asks}".strip(), {"network.name": network, **s}) for name, (asks, s) in rows.items()]


VARIANTS: tuple[Variant, ...] = (
    *_variants("unet", {"": ("image only", {})}),
    *_variants("guide", {"": ("the base", {})}),
    *_variants(
        "tmca",
        {
            "": ("", {}),
            "+alignment": ("with alignment alone", {"tmca.enhancement": False}),
            "+enhancement": ("with enhancement alone", {"tmca.alignment": "off"}),
            "-distance": ("without the margin of words between target and background", {"tmca.distance": False}),
            "+hard": ("hard positives", {"tmca.positives": "hard"}),
            "+batch": ("negatives from the batch", {"tmca.alignment": "batch"}),
            "+batch+hard": ("negatives from the batch, hard positives", {"tmca.alignment": "batch", "tmca.positives": "hard"}),
        },
    ),
    *_variants(
        "ssa",
        {
            "": ("", {}),
            "+transport": ("with transport alone", {"ssa.prior": "off"}),
            "+prior": ("with guidance alone", {"ssa.transport": "off"}),
            "-coarse": ("without phrases and regions", {"ssa.transport": "fine"}),
            "-fine": ("without words and patches", {"ssa.transport": "coarse"}),
            "-tokens": ("without zone tokens", {"ssa.tokens": False}),
            "-gate": ("without the gate", {"ssa.gate": False}),
            "-bias": ("without the attention bias", {"ssa.bias": False}),
            "-penalty": ("without the penalty outside", {"ssa.penalty": 0.0}),
            "+fixed": ("without zone tokens, prior that does not learn", {"ssa.prior": "fixed", "ssa.tokens": False}),
            "+thirds": ("without zone tokens, prior of image thirds", {"ssa.prior": "thirds", "ssa.tokens": False}),
            "+mirrored": ("without zone tokens, prior mirrored (image sides)", {"ssa.prior": "mirrored", "ssa.tokens": False}),
            "+random": ("without zone tokens, prior at random places", {"ssa.prior": "random", "ssa.tokens": False}),
        },
    ),
    *_variants(
        "tmca-ssa",
        {
            "": ("", {}),
            "-alignment": ("without alignment", {"tmca.alignment": "off"}),
            "+all": ("with all reports contrasted", {"tmca.contrasted": "all"}),
            "-enhancement": ("without enhancement", {"tmca.enhancement": False}),
            "-transport": ("without transport", {"ssa.transport": "off"}),
            "-prior": ("without guidance", {"ssa.prior": "off"}),
            "+silent": ("a tenth of the reports left out in training", {"augmentation.no_report": 0.1}),
            "-locational": ("reports without locational phrases", {"network.phrases": "descriptive,diagnostic"}),
            "-descriptive": ("reports without descriptive phrases", {"network.phrases": "locational,diagnostic"}),
            "-diagnostic": ("reports without diagnostic phrases", {"network.phrases": "locational,descriptive"}),
        },
    ),
)
