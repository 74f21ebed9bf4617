"""Methods of meta-learning: one file, one paper. Importing this registers them all."""

from kshot.algorithms.gradient import *  # noqa: F403
from kshot.algorithms.metric import *  # noqa: F403
