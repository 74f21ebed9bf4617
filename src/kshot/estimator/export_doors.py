"""How examples get into an exported network: which inputs it has, for each kind of encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kshot.core import UserError, generator
from kshot.estimator.export_network import Lifted, Quantiles, Vectors

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor


@dataclass(frozen=True)
class Door:
    """How examples get into the exported network.

    Attributes:
        network: inputs -> vectors.
        inputs: name -> names of its axes that may have any length, by their number.
        examples: batches of inputs, to trace with (the first) and to check with (all).
        embed: inputs -> vectors, as the model itself makes them.
        preprocessing: what must be done to an example first; plain JSON values.
    """

    network: nn.Module
    inputs: dict[str, dict[int, str]]
    examples: list[tuple[Tensor, ...]]
    embed: Callable[..., Tensor]
    preprocessing: dict[str, Any]


def door_of(model: FewShotClassifier | FewShotRegressor) -> Door:
    """Find out how examples get into a model.

    Args:
        model: fitted.

    Returns:
        The door.

    Raises:
        UserError: its encoder can't be exported.
    """
    encoder: Any = model.encoder_
    if encoder.name == "table:quantile":
        return _table(encoder)
    if encoder.kind == "molecule" or encoder.name == "vector:identity":
        return _vectors(encoder)
    if isinstance(getattr(encoder, "function", None), nn.Module):
        return _own(encoder, model)
    if not hasattr(encoder, "network"):
        raise UserError(
            f"expected an encoder with a network, got {encoder.name}, a function that can't be exported; encode by it "
            "yourself and fit a model of kind 'vector' on the vectors"
        )
    if encoder.kind == "text":
        return _text(encoder)
    network, example = encoder.network()
    name = "pixels" if encoder.kind == "image" else "rows"
    return _plain(network, name, example, encoder.preprocessing())


def _plain(network: nn.Module, name: str, example: Tensor, preprocessing: dict[str, Any]) -> Door:
    network = copy.deepcopy(network).cpu().eval()
    random = generator(0, "export")
    examples = [(torch.randn((n, *example.shape[1:]), generator=random),) for n in (2, 3, 1)]
    about = {**preprocessing, "input": {"name": name, "type": "float32", "shape": ["N", *example.shape[1:]]}}
    return Door(network, {name: {0: "N"}}, examples, network, about)


def _own(encoder: Any, model: FewShotClassifier | FewShotRegressor) -> Door:
    if encoder.kind in ("text", "molecule") or hasattr(encoder.function, "encode"):
        raise UserError(
            f"expected a network that takes tensors, {encoder.name} takes {encoder.kind}s as they are; encode by it "
            "yourself and fit a model of kind 'vector' on the vectors"
        )
    network = Lifted(encoder.function) if encoder.kind == "table" else encoder.function
    return _plain(network, "rows", torch.zeros(2, model.n_features_in_), {})


def _vectors(encoder: Any) -> Door:
    about: dict[str, Any] = {"input": {"name": "vectors", "type": "float32", "shape": ["N", encoder.dim]}}
    if encoder.kind == "molecule":
        about["fingerprint"] = encoder.settings()
    random = generator(0, "export")
    examples = [((torch.randn(n, encoder.dim, generator=random) > 1).float(),) for n in (4, 3, 1)]
    if encoder.kind == "vector":
        examples = [(torch.randn(n, encoder.dim, generator=random),) for n in (4, 3, 1)]
    network = Vectors()
    return Door(network, {"vectors": {0: "N"}}, examples, network, about)


def _table(encoder: Any) -> Door:
    from kshot.estimator.embedded import lift

    random = generator(0, "export")
    medians = encoder.state["medians"]
    ends = [encoder.state["knots"].min(), encoder.state["knots"].max()] if encoder.dim else [0.0, 1.0]

    def rows(n: int) -> Tensor:
        spread = torch.rand(n, len(medians), generator=random, dtype=torch.double)
        drawn = torch.where(spread < 0.5, medians * (0.5 + 2 * spread), ends[0] + (ends[1] - ends[0]) * spread)
        return drawn.masked_fill(torch.rand(n, len(medians), generator=random) < 0.1, torch.nan)

    about = {"input": {"name": "rows", "type": "float64", "shape": ["N", len(medians)], "missing": "NaN"}}
    return Door(
        Quantiles(encoder.state),
        {"rows": {0: "N"}},
        [(rows(n),) for n in (64, 3, 1)],
        lambda x: lift(encoder.encode(x.numpy()), "table"),
        about,
    )


def _text(encoder: Any) -> Door:
    network = copy.deepcopy(encoder.network()[0]).cpu().eval()
    texts = [
        "When will my new card arrive?",
        "Hello",
        "I was charged twice for the same thing, please pay it back " * 4,
    ]

    def inputs(chosen: list[str]) -> tuple[Tensor, ...]:
        return tuple(t.cpu() for t in encoder.pad(encoder.tokenize(chosen)))

    axes = {0: "N", 1: "L"}
    about = encoder.preprocessing()
    return Door(
        network,
        dict.fromkeys(about["inputs"], axes),
        [inputs(texts[:2]), inputs(texts), inputs(texts[1:2])],
        network,
        {**about, "input": {"names": about["inputs"], "type": "int64", "shape": ["N", "L"]}},
    )
