"""Joins names to objects: settings, runs, published recipes and the demo."""
