"""The contract of a learner as a public test, for people who write their own.

``check_learner(MyLearner)`` runs every clause on small synthetic episodes and says which one is broken, and how to mend
it. ``kshot.testing.strategies`` makes episodes and task specifications for tests by hypothesis, which it alone imports.
"""

from kshot.testing.case import ContractError
from kshot.testing.contract import CLAUSES, Checked, check_learner
from kshot.testing.synthetic import synthetic_episode, synthetic_episodes, tiny_backbone

__all__ = [
    "CLAUSES",
    "Checked",
    "ContractError",
    "check_learner",
    "synthetic_episode",
    "synthetic_episodes",
    "tiny_backbone",
]
