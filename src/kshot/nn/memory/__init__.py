"""Recurrent cells with a memory: they read a sequence, and what they have read stands in their state."""
