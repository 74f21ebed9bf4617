"""How learning runs: inner loops, task batching, the outer loop, checkpoints. It names no method."""
