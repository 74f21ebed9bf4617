"""The loader: exact resumption, exact shares of ranks, a state that is tensors and ints."""

import json
from itertools import islice

import pytest
import torch
from safetensors.torch import load, save

from kshot.core import Episode, UserError
from kshot.core.tree import leaves
from kshot.data.class_batches import ClassBatches
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.data.source import TaskSource
from kshot.data.transforms import RandomAffine


def image_tasks(**options) -> ImageTasks:
    images = ImageSet(
        images=torch.arange(10 * 6 * 16).remainder(251).to(torch.uint8).view(60, 1, 4, 4),
        labels=torch.arange(60) % 10,
        class_names=tuple("abcdefghij"),
        groups=torch.zeros(10, dtype=torch.int64),
        group_names=("all",),
        rotations=True,
    )
    return ImageTasks(images, name="images", **({"n_way": 3, "n_shot": 1, "n_query": 2} | options))


SOURCES = {
    "sinusoid": lambda: Sinusoid(n_shot=3, n_query=3),
    "images": lambda: image_tasks(transform=RandomAffine(rotation=10)),
    "varying": lambda: image_tasks(n_way_range=(2, 5), n_shot_range=(1, 4)),
}
each_source = pytest.mark.parametrize("source", [make() for make in SOURCES.values()], ids=list(SOURCES))


def tensors(batch: Episode | list[Episode]) -> list[torch.Tensor]:
    return leaves(batch if isinstance(batch, list) else tuple(batch))


def equal(a: Episode | list[Episode], b: Episode | list[Episode]) -> bool:
    first, second = tensors(a), tensors(b)
    return len(first) == len(second) and all(torch.equal(s, t) for s, t in zip(first, second, strict=True))


@each_source
def test_same_seed_same_stream_of_batches(source: TaskSource) -> None:
    batches = [list(islice(EpisodeLoader(source, 4, seed=3), 3)) for _ in range(2)]
    assert all(equal(a, b) for a, b in zip(*batches, strict=True))
    assert not equal(batches[0][0], batches[0][1])
    assert not equal(batches[0][0], next(EpisodeLoader(source, 4, seed=4)))
    assert not equal(batches[0][0], next(EpisodeLoader(source, 4, seed=3, stream="validation")))


@each_source
def test_a_stored_state_resumes_exactly(source: TaskSource) -> None:
    loader = EpisodeLoader(source, 4, seed=0)
    for _ in range(3):
        next(loader)
    state = loader.state_dict()
    stored = save({k: v for k, v in state.items() if isinstance(v, torch.Tensor)})
    numbers = json.dumps({k: v for k, v in state.items() if not isinstance(v, torch.Tensor)})
    following = list(islice(loader, 3))

    resumed = EpisodeLoader(source, 4, seed=99)
    resumed.load_state_dict(load(stored) | json.loads(numbers))
    assert resumed.n_drawn == 3
    assert all(equal(a, b) for a, b in zip(following, islice(resumed, 3), strict=True))
    assert resumed.n_drawn == loader.n_drawn == 6


def test_a_state_is_a_copy() -> None:
    loader = EpisodeLoader(Sinusoid(), 2, seed=0)
    state = loader.state_dict()
    first = next(loader)
    loader.load_state_dict(state)
    assert equal(next(loader), first)


@each_source
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_tasks_of_one_process(source: TaskSource, world: int) -> None:
    whole = EpisodeLoader(source, 6, seed=1)
    ranks = [EpisodeLoader(source, 6, seed=1, rank=rank, world=world) for rank in range(world)]
    for _ in range(2):
        everything = next(whole)
        for rank, loader in enumerate(ranks):
            share = next(loader)
            if isinstance(everything, list):
                assert equal(share, everything[rank::world])
            else:
                assert all(
                    torch.equal(mine, all_[rank::world])
                    for mine, all_ in zip(tensors(share), tensors(everything), strict=True)
                )


def test_a_state_may_be_resumed_by_another_number_of_ranks() -> None:
    source = Sinusoid()
    whole, second = EpisodeLoader(source, 4, seed=1), EpisodeLoader(source, 4, seed=5, rank=1, world=2)
    next(whole)
    second.load_state_dict(whole.state_dict())
    whole_batch, share = next(whole), next(second)
    assert torch.equal(share.support.x, whole_batch.support.x[1::2])


def test_varying_sources_give_lists_of_single_episodes() -> None:
    batch = next(EpisodeLoader(SOURCES["varying"](), 5, seed=2))
    assert isinstance(batch, list)
    assert [episode.support.y.shape[0] for episode in batch] == [1] * 5


def test_a_plan_can_be_taken_without_gathering() -> None:
    source = Sinusoid()
    planned, drawn = (
        EpisodeLoader(source, 4, seed=1, rank=1, world=2),
        EpisodeLoader(source, 4, seed=1, rank=1, world=2),
    )
    assert equal(source.episodes(planned.next_plan()), next(drawn))
    assert planned.n_drawn == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tasks": 0}, "multiple of the 1 processes, at least 1, got 0"),
        ({"n_tasks": 5, "world": 2, "rank": 0}, "multiple of the 2 processes"),
        ({"n_tasks": 1, "world": 2, "rank": 0}, "pass n_tasks=2"),
        ({"n_tasks": 4, "world": 2, "rank": 2}, r"rank of 0\.\.1"),
        ({"n_tasks": 4, "world": 2, "rank": -1}, "rank"),
        ({"n_tasks": 4, "world": 0}, "rank"),
    ],
)
def test_door_refuses_uneven_shares_and_unknown_ranks(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EpisodeLoader(Sinusoid(), seed=0, **options)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"generator": torch.zeros(3, dtype=torch.uint8), "n_drawn": 1},
        {"generator": torch.zeros(5056), "n_drawn": 1},
        {"generator": None, "n_drawn": 1},
        {"generator": torch.Generator().get_state(), "n_drawn": None},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(state: dict) -> None:
    loader, untouched = EpisodeLoader(Sinusoid(), 2, seed=0), EpisodeLoader(Sinusoid(), 2, seed=0)
    with pytest.raises(UserError, match="loader state"):
        loader.load_state_dict(state)
    assert equal(next(loader), next(untouched))


class Lacking(ImageTasks):
    """Every task but the first of a batch lacks its last class."""

    def episodes(self, plan):
        batch = super().episodes(plan)
        batch.support.y[1:] = batch.support.y[1:].clamp(max=batch.support.n_way - 2)
        return batch


def test_a_training_task_that_lacks_a_class_is_refused_by_its_number() -> None:
    lacking = Lacking(image_tasks().images, name="lacking", n_way=3, n_query=2)
    with pytest.raises(UserError, match="episode 1: support has 2 classes but n_way=3: class 2 has no example"):
        next(EpisodeLoader(lacking, 4, seed=0))
    # The second of rank 1's share is task 3 of the batch, wherever it is gathered.
    with pytest.raises(UserError, match="episode 3: support has 2 classes"):
        next(EpisodeLoader(lacking, 4, seed=0, rank=1, world=2))
    alone = EpisodeLoader(lacking, 1, seed=0)
    assert [next(alone).support.y.max() for _ in range(3)] == [2, 2, 2]


def test_batches_of_plain_classification_may_lack_classes() -> None:
    loader = EpisodeLoader(ClassBatches(image_tasks()), 4, seed=0)
    assert any(len(set(y.tolist())) < 10 for y in next(loader).support.y)
