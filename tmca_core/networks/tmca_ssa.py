"""`tmca-ssa`: both methods in one network. Maps are first enhanced (tmca), then related to the report by transport (ssa); each decoder
level is guided by the zone prior (ssa). The modules are those of the two networks; nothing is added.
"""

from __future__ import annotations

from torch import Tensor

from tmca_core.config import Config
from tmca_core.networks.guide import Notes, Report
from tmca_core.networks.interface import NETWORKS, Network
from tmca_core.networks.ssa import Ssa
from tmca_core.networks.tmca import Tmca
from tmca_core.text.encoders import TextEncoder


class TmcaSsa(Tmca, Ssa):
    """`Tmca` hands on to `Ssa`, and that to the base network."""

    def relate(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """The prior first: enhancement reads it."""
        self.direct(maps, report, notes)
        return super().relate(maps, report, notes)

    def wanting(self, report: Report) -> Tensor:
        """Of those with words, the reports that the parser gives no place: contrasting placed ones costs time and gained nothing."""
        spoken = super().wanting(report)
        return spoken & (report.certainty == 0) if self.prior is not None else spoken


@NETWORKS.register("tmca-ssa")
def tmca_ssa(config: Config, text_encoder: TextEncoder) -> Network:
    """Both methods."""
    return TmcaSsa(config, text_encoder)
