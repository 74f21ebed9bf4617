"""Methods of meta-learning: one file, one paper. Importing this registers them all."""

from kshot.algorithms.finetune import *  # noqa: F403
from kshot.algorithms.gradient import *  # noqa: F403
from kshot.algorithms.memory import *  # noqa: F403
from kshot.algorithms.metric import *  # noqa: F403
from kshot.algorithms.solver import *  # noqa: F403
from kshot.algorithms.transductive import *  # noqa: F403
