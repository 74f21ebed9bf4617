"""Optimisation-based methods: learn an initialisation, and how to descend from it."""

from kshot.algorithms.gradient.anil import ANIL as ANIL
from kshot.algorithms.gradient.boil import BOIL as BOIL
from kshot.algorithms.gradient.cavia import CAVIA as CAVIA
from kshot.algorithms.gradient.imaml import IMAML as IMAML
from kshot.algorithms.gradient.maml import MAML as MAML
from kshot.algorithms.gradient.mamlpp import MAMLpp as MAMLpp
from kshot.algorithms.gradient.metacurvature import MetaCurvature as MetaCurvature
from kshot.algorithms.gradient.metasgd import MetaSGD as MetaSGD
from kshot.algorithms.gradient.protomaml import ProtoMAML as ProtoMAML
from kshot.algorithms.gradient.reptile import Reptile as Reptile
