"""Model-based methods: networks with a memory, that learn how to learn by reading the support."""

from kshot.algorithms.memory.cnp import CNP as CNP
from kshot.algorithms.memory.dnc import DNC as DNC
from kshot.algorithms.memory.lstm import LSTM as LSTM
from kshot.algorithms.memory.mann import MANN as MANN
from kshot.algorithms.memory.ntm import NTM as NTM
from kshot.algorithms.memory.snail import SNAIL as SNAIL
from kshot.algorithms.memory.transformer import Transformer as Transformer
