"""Transductive methods: all queries of a task are answered together."""

from kshot.algorithms.transductive.bd_cspn import BDCSPN as BDCSPN
from kshot.algorithms.transductive.laplacianshot import LaplacianShot as LaplacianShot
from kshot.algorithms.transductive.pt_map import PTMAP as PTMAP
from kshot.algorithms.transductive.tim import TIM as TIM
from kshot.algorithms.transductive.transductive_finetuning import TransductiveFineTuning as TransductiveFineTuning
