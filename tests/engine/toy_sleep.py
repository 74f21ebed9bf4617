"""A program that is ended while its workers are at work."""

import signal
import sys

import toy_workers

from kshot.engine.batch import Batching, OuterStep

# What a shell starts in the background ignores Ctrl-C, and its children do.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No guard around it on purpose: a worker must not run the program that started it.
learner = toy_workers.odd()
step = OuterStep(learner, Batching("processes", workers=2))
step(toy_workers.episodes())
print(*(p.pid for p in step._workers._processes), flush=True)  # pyright: ignore[reportOptionalMemberAccess]
learner.what.fill_(int(sys.argv[1]))
step(toy_workers.episodes())
