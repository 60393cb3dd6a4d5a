"""Steps that make an update smaller: a half at the site (`encode`), a half at the server (`decode`), error feedback between rounds."""

from tmca_core.compression import blocks, plain, topk  # noqa: F401  (they register)
from tmca_core.compression.interface import COMPRESSIONS, Compression

__all__ = ["COMPRESSIONS", "Compression"]
