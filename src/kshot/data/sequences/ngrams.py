"""Dynamic n-grams: predict the bits of a new random source. Neural Turing Machines, arXiv:1410.5401, section 4.4.

For every sequence a table of 32 probabilities is drawn from Beta(1/2, 1/2): that the next bit is one, for each value of
the five bits before it. From it 200 bits are drawn, the first five of them fair coins. Each bit is asked, and shown at
the step after.

=============  ==============  ================
steps          channel 0       asked
=============  ==============  ================
1, read        0
1, asked       0               the first bit
199, asked     the last bit    the next bit
=============  ==============  ================

The best that anyone can do who does not know the table is ``optimal_probabilities`` (the paper's Eq. 10): after N1 ones
and N0 zeros behind the same five bits, the next is one with probability (N1 + 1/2) / (N1 + N0 + 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree, UserError
from kshot.data.sequences.source import SequenceSource, at_least, random_bits


class NGrams(SequenceSource):
    """Bits of random n-gram tables. A plan is a dict of ``bits`` (T, L).

    Args:
        n_bits: L, bits of a sequence.
        context_bits: C, bits on which the next one depends, one less than n.
        min_context_bits: fewest of them that decide; 0 for all. Each sequence has a number of its own, from this one to
            C, and its table tells apart no more than so many of the last bits. A gentler training: one bit of five
            says next to nothing about the next.

    Raises:
        UserError: numbers of bits that make no sense.
    """

    name = "ngrams"
    shows_while_asked = True

    def __init__(self, *, n_bits: int = 200, context_bits: int = 5, min_context_bits: int = 0) -> None:
        super().__init__(one_length=True)
        self.context_bits = at_least("context_bits", context_bits)
        if not 0 <= min_context_bits <= context_bits:
            raise UserError(
                f"expected min_context_bits of 0 to {context_bits}, as context_bits says, got {min_context_bits}; "
                "choose others"
            )
        self.decide = (min_context_bits or context_bits, context_bits)
        self.n_bits = at_least("n_bits", n_bits)
        self.n_shot, self.n_query = 1, n_bits
        self.spec = Spec("sequence", (1,), 1)

    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw tables, and bits from them.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.
        """
        # The square of the sine of a uniform angle has the distribution Beta(1/2, 1/2).
        angle = torch.rand(n_tasks, 2**self.context_bits, generator=generator, dtype=torch.float64) * (torch.pi / 2)
        table = self._coarse(angle.sin().square(), generator)
        bits = random_bits(n_tasks, self.n_bits, generator=generator)
        chance = torch.rand(n_tasks, self.n_bits, generator=generator, dtype=torch.float64)
        for i in range(self.context_bits, self.n_bits):
            context = contexts(bits[:, i - self.context_bits : i], self.context_bits)
            bits[:, i] = chance[:, i] < table.gather(1, context[:, -1:])[:, 0]
        return {"bits": bits}

    def _coarse(self, table: Tensor, generator: torch.Generator) -> Tensor:
        # (T, 2^C), of which contexts share an entry that differ before the last k bits.
        low, high = self.decide
        if low == high:
            return table
        k = torch.randint(low, high + 1, (len(table), 1), generator=generator)
        return table.gather(1, torch.arange(2**high) >> (high - k))

    def episodes(self, plan: Tree) -> Episode:
        """Lay out the sequences of a plan.

        Args:
            plan: from ``plan``, or a slice of it along the task axis.

        Returns:
            Episodes of S = 1 step read and Q = L asked, I = O = 1.
        """
        bits = plan["bits"]
        before = torch.cat([torch.zeros_like(bits[:, :1]), bits[:, :-1]], 1)
        return self.made(torch.zeros(len(bits), 1, 1), before[..., None], bits[..., None])

    def optimal(self, episodes: Episode) -> Tensor | None:
        """Answer as well as anyone can who does not know the tables.

        Args:
            episodes: T sequences.

        Returns:
            Logits (T, L, 1); None if it is not told how many bits decide.
        """
        if self.decide[0] < self.context_bits:
            return None
        p = optimal_probabilities(episodes.query.y[..., 0], self.context_bits)
        return torch.logit(p)[..., None]


def contexts(bits: Tensor, context_bits: int) -> Tensor:
    """Number the values of the bits before each place.

    Args:
        bits: (T, L) of zeros and ones.
        context_bits: C, how many bits count.

    Returns:
        int64 (T, L - C + 1) of 0..2^C - 1: the first is that of the bits 0..C-1, which stand before bit C.
    """
    weights = 2 ** torch.arange(context_bits, device=bits.device)
    return (bits.long().unfold(1, context_bits, 1) * weights).sum(-1)


def optimal_probabilities(bits: Tensor, context_bits: int = 5) -> Tensor:
    """Predict each bit as well as the bits before it allow, by the mean of the posterior over the table.

    Args:
        bits: (T, L) of zeros and ones.
        context_bits: C, bits on which the next one depends.

    Returns:
        float64 (T, L): the probability that each bit is one, a half for the first C. Takes T L^2 numbers.
    """
    n_tasks, length = bits.shape
    found = torch.full((n_tasks, length), 0.5, dtype=torch.float64, device=bits.device)
    if length <= context_bits:
        return found
    context, following = contexts(bits[:, :-1], context_bits), bits[:, context_bits:].double()
    seen = (context[:, :, None] == context[:, None, :]).double().tril(-1)  # the same bits, earlier
    ones = (seen * following[:, None, :]).sum(-1)
    found[:, context_bits:] = (ones + 0.5) / (seen.sum(-1) + 1)
    return found


def ngrams_tasks(split: str, *, n_bits: int = 200, context_bits: int = 5, min_context_bits: int = 0) -> NGrams:
    """Make bits of random n-gram tables: the ``tasks`` of "ngrams".

    Args:
        split: every one is a stream of the same distribution.
        n_bits: bits of a sequence.
        context_bits: bits on which the next one depends.
        min_context_bits: fewest that decide, in a sequence; 0 for as many.

    Returns:
        The task source.
    """
    return NGrams(n_bits=n_bits, context_bits=context_bits, min_context_bits=min_context_bits)
