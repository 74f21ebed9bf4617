"""Priority sort: put vectors out by their priorities. Neural Turing Machines, arXiv:1410.5401, section 4.5.

Twenty vectors of 8 bits are read, each with a priority uniform in [-1, 1] on a channel of its own. Then the sixteen of
highest priority are asked, the highest first.

==========  ==============  =============  ================
steps       channels 0..7   channel 8      asked
==========  ==============  =============  ================
20, read    the bits        the priority
16, asked   0               0              the 8 bits
==========  ==============  =============  ================
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree, UserError
from kshot.data.sequences.source import SequenceSource, at_least, random_bits


class PrioritySort(SequenceSource):
    """Vectors to be sorted. A plan is a dict of ``bits`` (T, L, W) and ``priority`` (T, L).

    Args:
        n_vectors: L, vectors that are read.
        n_asked: Q, those of highest priority that are asked.
        n_bits: W, width of the vectors.

    Raises:
        UserError: more are asked than read, or a number is below 1.
    """

    name = "priority_sort"

    def __init__(self, *, n_vectors: int = 20, n_asked: int = 16, n_bits: int = 8) -> None:
        super().__init__(one_length=True)
        self.n_vectors, self.n_asked = at_least("n_vectors", n_vectors), at_least("n_asked", n_asked)
        self.n_bits = at_least("n_bits", n_bits)
        if n_asked > n_vectors:
            raise UserError(f"expected n_asked <= n_vectors, got {n_asked} and {n_vectors}; ask fewer or show more")
        self.n_shot, self.n_query = n_vectors, n_asked
        self.spec = Spec("sequence", (n_bits + 1,), n_bits)

    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw bits and priorities.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.
        """
        bits = random_bits(n_tasks, self.n_vectors, self.n_bits, generator=generator)
        return {"bits": bits, "priority": 2 * torch.rand(n_tasks, self.n_vectors, generator=generator) - 1}

    def episodes(self, plan: Tree) -> Episode:
        """Lay out the sequences of a plan.

        Args:
            plan: from ``plan``, or a slice of it along the task axis.

        Returns:
            Episodes of S = L steps read and Q asked, I = W + 1 and O = W.
        """
        bits, priority = plan["bits"], plan["priority"]
        read = torch.cat([bits.float(), priority[..., None]], -1)
        order = priority.argsort(dim=1, descending=True, stable=True)[:, : self.n_asked]
        y = bits.gather(1, order[..., None].expand(-1, -1, self.n_bits))
        return self.made(read, torch.zeros(len(bits), self.n_asked, self.n_bits + 1), y)


def priority_sort_tasks(split: str, *, n_vectors: int = 20, n_asked: int = 16, n_bits: int = 8) -> PrioritySort:
    """Make vectors to be sorted: the ``tasks`` of "priority_sort".

    Args:
        split: every one is a stream of the same distribution.
        n_vectors: vectors that are read.
        n_asked: those of highest priority that are asked.
        n_bits: bits of each vector.

    Returns:
        The task source.
    """
    return PrioritySort(n_vectors=n_vectors, n_asked=n_asked, n_bits=n_bits)
