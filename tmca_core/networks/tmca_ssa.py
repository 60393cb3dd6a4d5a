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
        """With the prior, reports that the parser gives no zones though they may name some: words of place, or none that it knows.

        The contrast teaches words where to look. For reports that are placed already it cost time and gained nothing. `tmca.contrasted`
        can have all of them.
        """
        spoken = super().wanting(report)
        if self.prior is None or self.tmca.contrasted == "all":
            return spoken
        places, known = (report.kinds >= 4).any(1), (report.kinds >= 2).any(1)
        return spoken & (report.certainty == 0) & (places | ~known)


@NETWORKS.register("tmca-ssa")
def tmca_ssa(config: Config, text_encoder: TextEncoder) -> Network:
    """Both methods."""
    return TmcaSsa(config, text_encoder)
