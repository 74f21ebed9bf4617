"""Associative recall: shown an item of a list, put out the next. Neural Turing Machines, arXiv:1410.5401, section 4.3.

A list of N items, N uniform in 2..6, each of three vectors of 6 bits with a mark before it. Then one item that is not
the last is shown again between two marks of another kind, and the item after it is asked.

=============  ==============  =============  ==============  ================
steps          channels 0..5   channel 6      channel 7       asked
=============  ==============  =============  ==============  ================
1 + 3, read    0, then bits    1, then 0      0               (N times)
1, read        0               0              1
3, read        bits            0              0
1, read        0               0              1
3, asked       0               0              0               the 6 bits
=============  ==============  =============  ==============  ================
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Tree
from kshot.data.sequences.source import SequenceSource, at_least, checked, number_in, random_bits


class AssociativeRecall(SequenceSource):
    """Lists of items of which one is asked. A plan is a dict of ``items`` (T, N, L, W) and ``shown`` (T,), which item.

    Args:
        min_items: fewest items.
        max_items: most items.
        item_length: L, vectors of an item.
        n_bits: W, width of the vectors.
        one_length: as many items in all sequences of a plan, see ``SequenceSource``.
    """

    name = "associative_recall"

    def __init__(
        self,
        *,
        min_items: int = 2,
        max_items: int = 6,
        item_length: int = 3,
        n_bits: int = 6,
        one_length: bool = True,
    ) -> None:
        super().__init__(one_length=one_length or min_items == max_items)
        self.counts = checked("items", (min_items, max_items), least=2)
        self.item_length, self.n_bits = at_least("item_length", item_length), at_least("n_bits", n_bits)
        self.n_shot, self.n_query = (max_items + 1) * (item_length + 1) + 1, item_length
        self.spec = Spec("sequence", (n_bits + 2,), n_bits)

    def draw(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a number of items, their bits, and the one that is shown again.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            The plan.
        """
        n_items = number_in(self.counts, generator)
        items = random_bits(n_tasks, n_items, self.item_length, self.n_bits, generator=generator)
        return {"items": items, "shown": torch.randint(0, n_items - 1, (n_tasks,), generator=generator)}

    def episodes(self, plan: Tree) -> Episode:
        """Lay out the sequences of a plan.

        Args:
            plan: from ``plan``, one item of it if ``varying``, or a slice of it along the task axis.

        Returns:
            Episodes of S = (N + 1)(L + 1) + 1 steps read and Q = L asked, I = W + 2 and O = W.
        """
        items, shown = plan["items"], plan["shown"]
        t, n_items, length, w = items.shape
        each = torch.arange(t)
        listed = torch.zeros(t, n_items + 1, length + 1, w + 2)
        listed[:, :n_items, 1:, :w] = items
        listed[:, :n_items, 0, w] = 1
        listed[:, n_items, 1:, :w] = items[each, shown]
        listed[:, n_items, 0, w + 1] = 1
        end = torch.zeros(t, 1, w + 2)
        end[:, :, w + 1] = 1
        read = torch.cat([listed.flatten(1, 2), end], 1)
        return self.made(read, torch.zeros(t, length, w + 2), items[each, shown + 1])


def associative_recall_tasks(
    split: str, *, min_items: int = 2, max_items: int = 6, item_length: int = 3, n_bits: int = 6
) -> AssociativeRecall:
    """Make lists of items of which one is asked: the ``tasks`` of "associative_recall".

    Args:
        split: in meta_train the lists of a batch are equally long.
        min_items: fewest items.
        max_items: most items.
        item_length: vectors of an item.
        n_bits: bits of each of its vectors.

    Returns:
        The task source.
    """
    return AssociativeRecall(
        min_items=min_items,
        max_items=max_items,
        item_length=item_length,
        n_bits=n_bits,
        one_length=split == "meta_train",
    )
