"""Quantisers, layers, networks, data, training and export."""
