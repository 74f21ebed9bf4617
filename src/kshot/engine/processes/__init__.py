"""Worker processes on one CPU that share the tasks of a batch: ``pool`` starts them, ``worker`` is what they run."""

from kshot.engine.processes.pool import Workers, default_number, end_idle

__all__ = ["Workers", "default_number", "end_idle"]
