"""Optimisation-based methods: learn an initialisation, and how to descend from it."""

from kshot.algorithms.gradient.maml import MAML as MAML
