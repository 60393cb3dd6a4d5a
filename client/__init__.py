"""Flower ClientApp: one hospital, its data, its training and what may leave."""
