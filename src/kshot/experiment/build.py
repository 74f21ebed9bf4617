"""From names to objects: data sources, networks and learners, as a run's settings say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kshot.algorithms  # noqa: F401  (registers the methods)
from kshot.core import Learner, Method, Spec, UserError, generator, method
from kshot.core.learner import options_of
from kshot.core.registry import unknown
from kshot.data.catalog import dataset, open_source
from kshot.data.class_batches import ClassBatches
from kshot.data.source import TaskSource
from kshot.experiment.config import EvalConfig, RunConfig, typed
from kshot.nn.conv import Conv4
from kshot.nn.flat import Flat
from kshot.nn.mlp import MLP
from kshot.nn.norm import NORMALISATIONS
from kshot.nn.resnet import ResNet12, WideResNet

BACKBONES = ("auto", "conv4", "resnet12", "wrn28_10", "mlp", "none")
#: Those that take square images.
_CONVOLUTIONAL = ("conv4", "resnet12", "wrn28_10")
#: Their classes, but for that of "none", which has no weights.
BACKBONE_KINDS = (Conv4, ResNet12, WideResNet, MLP)


def open_split(config: RunConfig, split: str, *, root: Path | None = None, **overrides: Any) -> TaskSource:
    """Open one split of a run's data: meta_train with the tasks of training, others with those of evaluation.

    Args:
        config: the settings.
        split: meta_train, meta_val or meta_test.
        root: the data root.
        **overrides: n_way, n_shot or n_query, in the place of the settings' own; None to keep them.

    Returns:
        The source, on the CPU.

    Raises:
        UserError: an override of tasks that are fixed.
    """
    t, e = config.task, config.evaluation
    shape = {"n_way": t.n_way, "n_shot": t.n_shot, "n_query": t.n_query}
    options = dict(config.data_options)
    if split != "meta_train":
        own = {"n_way": e.eval_n_way, "n_shot": e.eval_n_shot, "n_query": e.eval_n_query}
        shape |= {k: v for k, v in own.items() if v}
        # Ranges and within-alphabet shares shape the training; a test says its own tasks.
        for name in ("n_way_range", "n_shot_range", "within_group", "turns_apart"):
            options.pop(name, None)
    shape |= {k: v for k, v in overrides.items() if k in shape and v is not None}
    known = dataset(config.data).options
    options |= {k: v for k, v in overrides.items() if k not in shape and v is not None}
    if "shuffle" in known and method(config.algorithm).learner.order_matters:
        # What reads the support in order must not find the labels in it.
        options.setdefault("shuffle", True)
    for name in options.keys() & known.keys():
        options[name] = typed(options[name], known[name].annotation, f"option {name} of {config.data}")
    source = open_source(config.data, split, root=root, **shape, **options)
    if source.n_fixed is not None:
        _check_asked(source, {k: v for k, v in overrides.items() if k in shape and v is not None})
    return source


def _check_asked(source: TaskSource, asked: dict[str, Any]) -> None:
    there = {"n_way": source.spec.n_outputs, "n_shot": source.n_shot, "n_query": source.n_query}
    for name, value in asked.items():
        if value != there[name]:
            raise UserError(
                f"the tasks of {source.name} are fixed: expected {name} {there[name]}, got {value}; leave it out"
            )


def open_training(config: RunConfig, **opening: Any) -> TaskSource:
    """Open what a run's method is trained on: few-shot tasks, or batches of all training classes.

    Args:
        config: the settings.
        **opening: of ``open_split``.

    Returns:
        The source, on the CPU.

    Raises:
        UserError: the method has nothing to train.
    """
    what = method(config.algorithm).learner.trained_on
    if what == "nothing":
        raise UserError(
            f"{config.algorithm} has nothing to train; test it as it is: "
            f"kshot evaluate {config.algorithm} --data {config.data}"
        )
    tasks = open_split(config, "meta_train", **opening)
    return ClassBatches(tasks) if what == "classes" else tasks


def check_shapes(learner: Learner, tensors: dict[str, Tensor], what: str) -> None:
    """Refuse weights of other shapes than a learner's.

    Args:
        learner: the learner.
        tensors: name -> weights of a checkpoint.
        what: holds them, in words.

    Raises:
        UserError: a shape differs.
    """
    own = learner.state_dict()
    for name in (name for name in own if name in tensors):
        there, here = tuple(tensors[name].shape), tuple(own[name].shape)
        if there != here:
            raise UserError(
                f"{what} is of another network: expected {name} of shape {here}, got {there}; use the options and data "
                "that it was trained with (config.toml beside it), or train another"
            )


def resolve(config: RunConfig, spec: Spec) -> RunConfig:
    """Fill in what the settings leave to the method's paper and to the shape of the data.

    Args:
        config: the settings.
        spec: of the training tasks.

    Returns:
        Settings in which nothing is "auto" but the device, and every option of the algorithm stands.

    Raises:
        UserError: the method cannot learn such tasks, or has no such option.
    """
    found = method(config.algorithm)
    if spec.kind not in found.learner.kinds:
        raise UserError(
            f"{found.name} learns {' and '.join(found.learner.kinds)}, but {config.data} is {spec.kind}; "
            "choose another data set or algorithm"
        )
    network = config.network
    if network.backbone == "auto":
        network = dataclasses.replace(network, backbone=_usual_backbone(spec))
    if network.normalisation == "auto":
        # The multi-layer perceptrons of the papers have no normalisation.
        mode = found.learner.default_normalisation if network.backbone in _CONVOLUTIONAL else "none"
        network = dataclasses.replace(network, normalisation=mode)
    options = _options(found, spec, config.options)
    evaluation = _at_ways(config.evaluation, found, spec, options)
    return dataclasses.replace(config, network=network, evaluation=evaluation, options=options)


def _usual_backbone(spec: Spec) -> str:
    if spec.kind == "sequence":
        return "none"
    return "conv4" if len(spec.input_shape) == 3 else "mlp"


def _options(found: Method, spec: Spec, given: dict[str, Any]) -> dict[str, Any]:
    known = options_of(found.learner)
    for name in given:
        if name not in known:
            raise UserError(unknown(f"option of {found.name}", name, list(known) or ["none"]))
    checked = {k: typed(v, known[k].annotation, f"option {k} of {found.name}") for k, v in given.items()}
    return {**{k: p.default for k, p in known.items()}, **found.learner.paper_options(spec), **checked}


def _at_ways(evaluation: EvalConfig, found: Method, spec: Spec, options: dict[str, Any]) -> EvalConfig:
    # A head for W classes is tested on tasks of W: those of training, or fewer that are dealt from them.
    if spec.kind != "classification" or found.learner.any_way:
        return evaluation
    dealt, wanted = options.get("deal_ways") or 0, evaluation.eval_n_way
    if wanted not in (0, dealt or spec.n_outputs):
        change = f"deal_ways={wanted} among its options" if dealt else f"n_way={wanted}"
        raise UserError(
            f"{found.name} learns a head for {dealt or spec.n_outputs} classes and cannot be evaluated at {wanted}; "
            f"train with {change}, or evaluate at {dealt or spec.n_outputs}"
        )
    return dataclasses.replace(evaluation, eval_n_way=wanted or dealt)


def build_learner(config: RunConfig, spec: Spec) -> Learner:
    """Build a run's learner with its initial weights, which depend on the seed alone.

    Args:
        config: settings, resolved.
        spec: of the training tasks.

    Returns:
        The learner, on the CPU.
    """
    with torch.random.fork_rng([]):
        # PyTorch's layers draw their weights from the global generator; it is put back afterwards.
        torch.manual_seed(generator(config.train.seed, "weights").initial_seed())
        backbone = build_backbone(config, spec)
        learner = method(config.algorithm).learner.from_backbone(backbone, spec, **config.options)
    learner.spec = learner.spec or spec
    return learner


def build_backbone(config: RunConfig, spec: Spec) -> nn.Module:
    """Build a run's network.

    Args:
        config: settings, resolved.
        spec: of the training tasks.

    Returns:
        A module that maps (N, *input_shape) to (N, n_features).

    Raises:
        UserError: the network does not exist, or cannot take such inputs.
    """
    network, shape = config.network, spec.input_shape
    if network.normalisation not in NORMALISATIONS:
        raise UserError(unknown("normalisation", network.normalisation, ["auto", *NORMALISATIONS]))
    if network.backbone == "none":
        return Flat(shape)
    if network.backbone == "mlp":
        return MLP(int(torch.Size(shape).numel()), network.hidden, network.normalisation)
    if network.backbone not in _CONVOLUTIONAL:
        raise UserError(unknown("backbone", network.backbone, list(BACKBONES)))
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(
            f"{network.backbone} takes square images (C, H, H), the data have examples of shape {shape}; use mlp"
        )
    if network.backbone == "resnet12":
        return ResNet12(shape[0], shape[1], network.normalisation)
    if network.backbone == "wrn28_10":
        return WideResNet(shape[0], network.normalisation)
    return Conv4(shape[0], network.n_filters, shape[1], network.normalisation, network.downsample)
