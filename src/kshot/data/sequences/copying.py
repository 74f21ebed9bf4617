"""Copy: read a sequence of random bits, then put it out. Neural Turing Machines, arXiv:1410.5401, section 4.1.

A sequence of L vectors of 8 bits, L uniform in 1..20, is followed by a flag on a channel of its own. Then come L steps
whose input is zero, and at each the vector of that place is asked.

=========  ==============  ===========  ================
steps      channels 0..7   channel 8    asked
=========  ==============  ===========  ================
L, read    the bits        0
1, read    0               1, the flag
L, asked   0               0            the 8 bits
=========  ==============  ===========  ================
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree
from kshot.data.sequences.source import SequenceSource, at_least, checked, number_in, random_bits


class Copy(SequenceSource):
    """Sequences to be copied. A plan is a dict of ``bits`` (T, L, W).

    Args:
        min_length: shortest sequence.
        max_length: longest sequence.
        n_bits: W, width of its vectors.
        one_length: see ``SequenceSource``.

    Example:
        >>> from kshot.core import generator
        >>> source = Copy(min_length=3, max_length=3)
        >>> source.episodes(source.plan(2, generator(0))).support.x.shape
        torch.Size([2, 4, 9])
    """

    name = "copy"

    def __init__(self, *, min_length: int = 1, max_length: int = 20, n_bits: int = 8, one_length: bool = True) -> None:
        super().__init__(one_length=one_length or min_length == max_length)
        self.lengths = checked("length", (min_length, max_length))
        self.n_bits = at_least("n_bits", n_bits)
        self.n_shot, self.n_query = max_length + 1, max_length
        self.spec = Spec("sequence", (n_bits + 1,), n_bits)

    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a length, and bits.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.
        """
        length = number_in(self.lengths, generator)
        return {"bits": random_bits(n_tasks, length, self.n_bits, generator=generator)}

    def episodes(self, plan: Tree) -> Episode:
        """Lay out the sequences of a plan.

        Args:
            plan: from ``plan``, one item of it if ``varying``, or a slice of it along the task axis.

        Returns:
            Episodes of S = L + 1 steps read and Q = L asked, I = W + 1 and O = W.
        """
        bits = plan["bits"]
        t, length, w = bits.shape
        read = torch.zeros(t, length + 1, w + 1)
        read[:, :length, :w] = bits
        read[:, length, w] = 1
        return self.made(read, torch.zeros(t, length, w + 1), bits)


def copy_tasks(split: str, *, min_length: int = 1, max_length: int = 20, n_bits: int = 8) -> Copy:
    """Make sequences to be copied: the ``tasks`` of "copy".

    Args:
        split: in meta_train the sequences of a batch are equally long.
        min_length: shortest sequence.
        max_length: longest sequence.
        n_bits: bits of each of its vectors.

    Returns:
        The task source.
    """
    return Copy(min_length=min_length, max_length=max_length, n_bits=n_bits, one_length=split == "meta_train")
