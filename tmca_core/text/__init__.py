"""Reports: parsing, side-swapping, tokenising and encoding."""
