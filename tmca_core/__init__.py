"""The science of tmca-fl: cases, text, networks, losses, training, reports. Knows torch, never Flower."""

__version__ = "0.1.0"
