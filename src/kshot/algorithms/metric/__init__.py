"""Metric-based methods: learn an embedding in which a simple rule answers."""

from kshot.algorithms.metric.protonet import ProtoNet as ProtoNet
