"""Layers and networks; nothing here knows what an episode is."""
