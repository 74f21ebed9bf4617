"""Hypothesis strategies for the tests of methods, samplers and stores; the package hypothesis is needed here only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kshot.core import Episode, Spec, UserError
from kshot.testing.synthetic import synthetic_episode, synthetic_episodes

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise UserError(
        "expected the package hypothesis for these strategies; install it: pip install hypothesis"
    ) from error

#: Types that tensors of ``trees`` have.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def specs(
    kinds: Sequence[str] = ("classification", "regression"), *, max_outputs: int = 6, images: bool = True
) -> st.SearchStrategy[Spec]:
    """Draw what tasks look like.

    Args:
        kinds: of task.
        max_outputs: largest number of classes (of at least 2), or width of a target (of at least 1).
        images: allow square images beside vectors.

    Returns:
        A strategy of specifications.
    """
    vectors = st.tuples(st.integers(1, 5))
    squares = st.builds(lambda c, side: (c, side, side), st.integers(1, 3), st.integers(4, 12))
    shapes = st.one_of(vectors, squares) if images else vectors

    def of(kind: str) -> st.SearchStrategy[Spec]:
        least = 2 if kind == "classification" else 1
        return st.builds(Spec, st.just(kind), shapes, st.integers(least, max_outputs))

    return st.one_of([of(kind) for kind in kinds])


def episodes(
    spec: Spec | None = None, *, max_shot: int = 4, max_query: int = 4, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[Episode]:
    """Draw single episodes; classes have unequal numbers of shots.

    Args:
        spec: what the tasks look like; drawn too if None.
        max_shot: most support examples per class.
        max_query: most query examples per class.
        dtype: of the floating tensors.

    Returns:
        A strategy of episodes without a task axis.
    """

    @st.composite
    def draw_one(draw: st.DrawFn) -> Episode:
        chosen = spec or draw(specs())
        shots = st.lists(st.integers(1, max_shot), min_size=chosen.n_outputs, max_size=chosen.n_outputs)
        options = {"n_shot": draw(shots), "n_query": draw(st.integers(1, max_query)), "seed": draw(st.integers(0, 999))}
        return synthetic_episode(chosen, dtype=dtype, **options)

    return draw_one()


def batches(
    spec: Spec | None = None,
    *,
    max_tasks: int = 5,
    max_shot: int = 3,
    max_query: int = 3,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Episode]:
    """Draw batches of episodes of equal shapes.

    Args:
        spec: what the tasks look like; drawn too if None.
        max_tasks: most tasks.
        max_shot: most support examples per class, equal for all.
        max_query: most query examples per class.
        dtype: of the floating tensors.

    Returns:
        A strategy of episodes with a leading task axis.
    """
    return st.builds(
        synthetic_episodes,
        st.just(spec) if spec else specs(),
        st.integers(1, max_tasks),
        n_shot=st.integers(1, max_shot),
        n_query=st.integers(1, max_query),
        seed=st.integers(0, 999),
        dtype=st.just(dtype),
    )


def tensors(dtypes: Sequence[torch.dtype] = DTYPES, *, max_side: int = 3) -> st.SearchStrategy[torch.Tensor]:
    """Draw small tensors: scalars and empty ones too.

    Args:
        dtypes: to choose from.
        max_side: largest length of an axis.

    Returns:
        A strategy of tensors.
    """

    def make(shape: list[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        return (8 * torch.randn(shape, generator=g, dtype=torch.float64)).abs().to(dtype)

    shapes = st.lists(st.integers(0, max_side), max_size=3)
    return st.builds(make, shapes, st.sampled_from(list(dtypes)), st.integers(0, 999))


def trees(*, max_leaves: int = 8) -> st.SearchStrategy[Any]:
    """Draw what a checkpoint or a state may hold: dicts and lists of tensors, numbers, texts and None.

    Args:
        max_leaves: about how many leaves.

    Returns:
        A strategy of trees; keys of a dict are all texts or all whole numbers.
    """
    numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.booleans())
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    keyed = (st.text("ab/~.$", max_size=3), st.integers(-3, 20))
    return st.recursive(
        st.one_of(tensors(), numbers, texts, st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), *(st.dictionaries(keys, inner, max_size=3) for keys in keyed)
        ),
        max_leaves=max_leaves,
    )
