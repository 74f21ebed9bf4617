"""Repeat copy: put a sequence out as often as told, then a mark. Neural Turing Machines, arXiv:1410.5401, section 4.2.

A sequence of L vectors of 8 bits is followed by the number of copies R on a channel of its own; L and R are uniform in
1..10. Then the sequence is asked R times over, and an end mark after it. The number is shown less its mean in
training, over its deviation there; the same two numbers hold where more copies are asked than in training.

=============  ==============  ==================  ================  =========
steps          channels 0..7   channel 8           asked 0..7        asked 8
=============  ==============  ==================  ================  =========
L, read        the bits        0
1, read        0               R, made standard
L R, asked     0               0                   the 8 bits        0
1, asked       0               0                   0                 1
=============  ==============  ==================  ================  =========
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree
from kshot.data.sequences.source import SequenceSource, at_least, checked, number_in, random_bits

#: Mean and deviation of a number that is uniform in 1..10, as in the paper's training.
MEAN, DEVIATION = 5.5, (99 / 12) ** 0.5


class RepeatCopy(SequenceSource):
    """Sequences to be copied several times. A plan is a dict of ``bits`` (T, L, W) and ``repeats`` (T,), all equal.

    Args:
        min_length: shortest sequence.
        max_length: longest sequence.
        min_repeats: fewest copies.
        max_repeats: most copies.
        n_bits: W, width of its vectors.
        one_length: one length and one number of copies for all sequences of a plan, see ``SequenceSource``.
    """

    name = "repeat_copy"

    def __init__(
        self,
        *,
        min_length: int = 1,
        max_length: int = 10,
        min_repeats: int = 1,
        max_repeats: int = 10,
        n_bits: int = 8,
        one_length: bool = True,
    ) -> None:
        fixed = min_length == max_length and min_repeats == max_repeats
        super().__init__(one_length=one_length or fixed)
        self.lengths = checked("length", (min_length, max_length))
        self.repeats = checked("repeats", (min_repeats, max_repeats))
        self.n_bits = at_least("n_bits", n_bits)
        self.n_shot, self.n_query = max_length + 1, max_length * max_repeats + 1
        self.spec = Spec("sequence", (n_bits + 1,), n_bits + 1)

    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a length, a number of copies, and bits.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.
        """
        length, repeats = number_in(self.lengths, generator), number_in(self.repeats, generator)
        bits = random_bits(n_tasks, length, self.n_bits, generator=generator)
        return {"bits": bits, "repeats": torch.full((n_tasks,), repeats)}

    def episodes(self, plan: Tree) -> Episode:
        """Lay out the sequences of a plan.

        Args:
            plan: from ``plan``, one item of it if ``varying``, or a slice of it along the task axis.

        Returns:
            Episodes of S = L + 1 steps read and Q = L R + 1 asked, I = O = W + 1.
        """
        bits, repeats = plan["bits"], int(plan["repeats"][0])
        t, length, w = bits.shape
        read = torch.zeros(t, length + 1, w + 1)
        read[:, :length, :w] = bits
        read[:, length, w] = (repeats - MEAN) / DEVIATION
        y = torch.zeros(t, length * repeats + 1, w + 1, dtype=torch.bool)
        y[:, :-1, :w] = bits.repeat(1, repeats, 1)
        y[:, -1, w] = True
        return self.made(read, torch.zeros(t, length * repeats + 1, w + 1), y)


def repeat_copy_tasks(
    split: str,
    *,
    min_length: int = 1,
    max_length: int = 10,
    min_repeats: int = 1,
    max_repeats: int = 10,
    n_bits: int = 8,
) -> RepeatCopy:
    """Make sequences to be copied several times: the ``tasks`` of "repeat_copy".

    Args:
        split: in meta_train the sequences of a batch are equally long.
        min_length: shortest sequence.
        max_length: longest sequence.
        min_repeats: fewest copies.
        max_repeats: most copies.
        n_bits: bits of each of its vectors.

    Returns:
        The task source.
    """
    return RepeatCopy(
        min_length=min_length,
        max_length=max_length,
        min_repeats=min_repeats,
        max_repeats=max_repeats,
        n_bits=n_bits,
        one_length=split == "meta_train",
    )
