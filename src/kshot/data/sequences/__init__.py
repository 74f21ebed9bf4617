"""The tasks of Graves, Wayne, Danihelka, Neural Turing Machines, 2014, arXiv:1410.5401, section 4; a file for each."""

from kshot.data.sequences.associative_recall import AssociativeRecall
from kshot.data.sequences.copying import Copy
from kshot.data.sequences.ngrams import NGrams
from kshot.data.sequences.priority_sort import PrioritySort
from kshot.data.sequences.repeat_copy import RepeatCopy
from kshot.data.sequences.source import SequenceSource

__all__ = ["AssociativeRecall", "Copy", "NGrams", "PrioritySort", "RepeatCopy", "SequenceSource"]
