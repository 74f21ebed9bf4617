"""Small made-up episodes and networks: enough structure to be learned from, small enough for float64 everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.core import Episode, Spec, Split, generator
from kshot.core.episode import stack
from kshot.nn.conv import ConvBlock
from kshot.nn.flat import Flat
from kshot.nn.mlp import MLP

#: One example shape for each kind of task that a learner may be built for without naming one.
SPECS = {
    "classification": Spec("classification", (1, 8, 8), 3),
    "regression": Spec("regression", (2,), 2),
    "sequence": Spec("sequence", (4,), 3),
}


def synthetic_episode(
    spec: Spec,
    *,
    n_shot: int | Sequence[int] = 2,
    n_query: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Episode:
    """Make one episode: classes are noisy copies of random patterns, regression targets a random smooth function.

    Examples stand in random order, so that a learner cannot lean on one. A sequence is of random bits, with targets
    that are what was read, over and over.

    Args:
        spec: what the task looks like.
        n_shot: support examples per class, one number or one for each class; or points of a regression task, or steps
            read of a sequence (of numbers in a list, the sum).
        n_query: query examples per class, or points, or steps asked.
        seed: of everything in it.
        dtype: of the floating tensors.

    Returns:
        The episode, without a task axis.
    """
    g = generator(seed, "synthetic", *spec.input_shape)
    if spec.kind == "sequence":
        return _sequence(spec, n_shot if isinstance(n_shot, int) else sum(n_shot), n_query, g, dtype)
    if spec.kind == "regression":
        shots = n_shot if isinstance(n_shot, int) else sum(n_shot)
        make = _Function(spec, g)
        return Episode(make(shots, g, dtype), make(n_query, g, dtype))
    shots_each = [n_shot] * spec.n_outputs if isinstance(n_shot, int) else list(n_shot)
    patterns = torch.randn(spec.n_outputs, *spec.input_shape, generator=g, dtype=torch.float64)
    support = _classes(patterns, shots_each, g, dtype)
    return Episode(support, _classes(patterns, [n_query] * spec.n_outputs, g, dtype))


def _sequence(spec: Spec, n_read: int, n_asked: int, g: torch.Generator, dtype: torch.dtype) -> Episode:
    x = torch.randint(0, 2, (n_read + n_asked, *spec.input_shape), generator=g).to(dtype)
    read = x[:n_read].flatten(1)
    step, place = torch.arange(n_asked) % n_read, torch.arange(spec.n_outputs) % read.shape[1]
    nothing = torch.empty(n_read, 0, dtype=torch.bool)
    return Episode(Split(x[:n_read], nothing), Split(x[n_read:], read[step][:, place] > 0))


def _classes(patterns: Tensor, counts: Sequence[int], g: torch.Generator, dtype: torch.dtype) -> Split:
    n_way = len(patterns)
    y = torch.arange(n_way).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=g)]
    noise = torch.randn(len(y), *patterns.shape[1:], generator=g, dtype=torch.float64)
    x = (patterns[y] + 0.7 * noise).to(dtype)
    return Split(torch.sigmoid(x) if x.ndim == 4 else x, y, n_way)


class _Function:
    """y = sin(A x + b), elementwise, of random A and b."""

    def __init__(self, spec: Spec, g: torch.Generator) -> None:
        self.shape = spec.input_shape
        n_inputs = int(torch.tensor(spec.input_shape).prod())
        self.matrix = torch.randn(n_inputs, spec.n_outputs, generator=g, dtype=torch.float64)
        self.shift = torch.randn(spec.n_outputs, generator=g, dtype=torch.float64)

    def __call__(self, n: int, g: torch.Generator, dtype: torch.dtype) -> Split:
        x = torch.randn(n, *self.shape, generator=g, dtype=torch.float64)
        return Split(x.to(dtype), torch.sin(x.flatten(1) @ self.matrix + self.shift).to(dtype))


def synthetic_episodes(
    spec: Spec,
    n_tasks: int = 3,
    *,
    n_shot: int | Sequence[int] = 2,
    n_query: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Episode:
    """Make a batch of episodes, see ``synthetic_episode``.

    Args:
        spec: what the tasks look like.
        n_tasks: T.
        n_shot: see ``synthetic_episode``.
        n_query: see ``synthetic_episode``.
        seed: of everything in them.
        dtype: of the floating tensors.

    Returns:
        The batch, with a leading task axis.
    """
    options = {"n_shot": n_shot, "n_query": n_query, "dtype": dtype}
    return stack([synthetic_episode(spec, seed=1000 * seed + t, **options) for t in range(n_tasks)])


class TinyConv(nn.Module):
    """Two convolutional blocks and a flattening, for images of at least four pixels a side.

    Args:
        in_channels: channels of the images.
        image_size: their side.
        normalisation: see ``kshot.nn.norm``.
        n_filters: channels of both blocks.

    Attributes:
        takes_tasks: a leading task axis is allowed.
        n_features: D.
    """

    takes_tasks = True

    def __init__(self, in_channels: int, image_size: int, normalisation: str, n_filters: int = 4) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, n_filters, normalisation, "pool")
        self.second = ConvBlock(n_filters, n_filters, normalisation, "stride")
        self.n_features = n_filters * ((image_size // 2 + 1) // 2) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x: (N, C, H, W), or (T, N, C, H, W) for T tasks.

        Returns:
            (N, D), or (T, N, D).
        """
        return self.second(self.first(x)).flatten(-3)


def tiny_backbone(spec: Spec, normalisation: str = "none") -> nn.Module:
    """Make a backbone of a few hundred parameters for tasks like these.

    Args:
        spec: what the tasks look like: square images (C, H, H) of at least 4 pixels a side, vectors, or sequences,
            whose steps have no network.
        normalisation: see ``kshot.nn.norm``.

    Returns:
        The backbone, with ``n_features``; its weights are drawn from the global generator, as all of PyTorch's are.
    """
    if spec.kind == "sequence":
        return Flat(spec.input_shape)
    if len(spec.input_shape) == 3:
        return TinyConv(spec.input_shape[0], spec.input_shape[1], normalisation)
    return MLP(int(torch.tensor(spec.input_shape).prod()), (10, 8), normalisation)
