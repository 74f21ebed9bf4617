"""Metric-based methods: learn an embedding in which a simple rule answers."""

from kshot.algorithms.metric.deepemd import DeepEMD as DeepEMD
from kshot.algorithms.metric.feat import FEAT as FEAT
from kshot.algorithms.metric.gaussian_protonet import GaussianProtoNet as GaussianProtoNet
from kshot.algorithms.metric.matching import MatchingNet as MatchingNet
from kshot.algorithms.metric.protonet import ProtoNet as ProtoNet
from kshot.algorithms.metric.relation import RelationNet as RelationNet
from kshot.algorithms.metric.simpleshot import SimpleShot as SimpleShot
