"""Baselines: plain training, then a head or a few gradient steps for each task."""
