"""Generated chest films with reports: no licence, no download, and the report decides which opacities the mask holds."""

from tmca_core.cases.phantom.ceiling import Ceiling, image_only_ceiling
from tmca_core.cases.phantom.films import generate, generate_site
from tmca_core.cases.phantom.writing import write

__all__ = ["Ceiling", "generate", "generate_site", "image_only_ceiling", "write"]
