"""`tmca-ssa`: both methods in one network. Maps are first enhanced (tmca), then related to the report by transport (ssa); each decoder
level is guided by the zone prior (ssa). The modules are those of the two networks; nothing is added.
"""

from __future__ import annotations

from tmca_core.config import Config
from tmca_core.networks.interface import NETWORKS, Network
from tmca_core.networks.ssa import Ssa
from tmca_core.networks.tmca import Tmca
from tmca_core.text.encoders import TextEncoder


class TmcaSsa(Tmca, Ssa):
    """`Tmca` hands on to `Ssa`, and that to the base network."""


@NETWORKS.register("tmca-ssa")
def tmca_ssa(config: Config, text_encoder: TextEncoder) -> Network:
    """Both methods."""
    return TmcaSsa(config, text_encoder)
