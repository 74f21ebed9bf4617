"""Episodes of images: every picture is of the class its label stands for, and plans tell everything."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from kshot.core import Episode, Spec, UserError, generator, tree_map
from kshot.core.checks import check_episode
from kshot.core.episode import unbind
from kshot.core.tree import leaves
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.transforms import RandomAffine


def telling_images(n_classes: int = 12, n_each: int = 8, rotations: bool = False) -> ImageSet:
    """Images whose first pixel is their class and second pixel their number in it."""
    images = torch.zeros(n_classes, n_each, 1, 3, 3, dtype=torch.uint8)
    images[..., 0, 0, 0] = torch.arange(n_classes)[:, None].to(torch.uint8) + 1
    images[..., 0, 0, 1] = torch.arange(n_each).to(torch.uint8) + 101
    return ImageSet(
        images=images.flatten(0, 1),
        labels=torch.arange(n_classes).repeat_interleave(n_each),
        class_names=tuple(f"c{c}" for c in range(n_classes)),
        groups=torch.arange(n_classes) // 4,
        group_names=tuple(f"g{g}" for g in range(-(-n_classes // 4))),
        rotations=rotations,
    )


def tasks(images: ImageSet | None = None, **options) -> ImageTasks:
    sizes = {"n_way": 4, "n_shot": 2, "n_query": 3}
    return ImageTasks(images or telling_images(), name="telling", **(sizes | options))


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    return (x * 255).round().to(torch.uint8)


def same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(s, t) for s, t in zip(leaves(tuple(a)), leaves(tuple(b)), strict=True))


def test_shapes_types_and_spec() -> None:
    source = tasks()
    episodes = source.episodes(source.plan(5, generator(0)))
    assert source.spec == Spec("classification", (1, 3, 3), 4)
    assert (source.name, source.n_shot, source.n_query, source.varying) == ("telling", 2, 3, False)
    assert source.classes == source.images.class_names
    assert source.sha256 == source.images.sha256
    assert episodes.support.x.shape == (5, 8, 1, 3, 3)
    assert episodes.query.x.shape == (5, 12, 1, 3, 3)
    assert episodes.support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 5
    assert episodes.query.y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]] * 5
    assert episodes.support.n_way == episodes.query.n_way == 4
    for episode in unbind(episodes):
        check_episode(episode, source.spec)


def test_pictures_are_of_the_planned_classes_and_never_in_both_splits() -> None:
    source = tasks()
    plan = source.plan(50, generator(1))
    episodes = source.episodes(plan)
    for task in range(50):
        seen = []
        for split in episodes:
            pixels = bytes_of(split.x[task]).flatten(1).long()
            assert torch.equal(pixels[:, 0] - 1, plan["classes"][task][split.y[task]])
            seen += [tuple(p) for p in pixels[:, :2].tolist()]
        assert len(set(seen)) == len(seen) == 4 * (2 + 3)


def test_labels_are_shuffled_against_class_numbers() -> None:
    source = tasks(n_way=3)
    classes = source.plan(300, generator(2))["classes"]
    ascending = (classes.diff(dim=1) > 0).all(1).double().mean()
    assert abs(float(ascending) - 1 / 6) < 0.08, "an order of 3 classes ascends by chance 1 time in 6"


def test_rotated_classes_show_rotated_pictures() -> None:
    images = telling_images(rotations=True)
    source = tasks(images, n_way=20)
    plan = source.plan(6, generator(3))
    split = source.episodes(plan).query
    turns = plan["classes"] // 12
    assert turns.unique().tolist() == [0, 1, 2, 3]
    assert len(source.classes) == 48
    for task in range(6):
        for x, y in zip(bytes_of(split.x[task]), split.y[task].tolist(), strict=True):
            back = torch.rot90(x, -int(turns[task, y]), (-2, -1))
            assert int(back[0, 0, 0]) - 1 == int(plan["classes"][task, y]) % 12


def test_within_group_keeps_to_one_group() -> None:
    source = tasks(within_group=1.0)
    groups = source.plan(20, generator(4))["classes"] // 4
    assert (groups == groups[:, :1]).all()


def test_same_generator_same_episodes_and_a_slice_of_the_plan_is_a_slice_of_them() -> None:
    source = tasks(transform=RandomAffine(rotation=30, shift=0.2))
    plan = source.plan(6, generator(5))
    episodes = source.episodes(plan)
    assert same(episodes, source.episodes(source.plan(6, generator(5))))
    assert not same(episodes, source.episodes(source.plan(6, generator(6))))
    share = source.episodes(tree_map(lambda t: t[1::2], plan))
    for split, whole in zip(share, episodes, strict=True):
        assert torch.equal(split.x, whole.x[1::2])
        assert torch.equal(split.y, whole.y[1::2])


def test_transform_changes_pictures_of_both_splits_and_no_draw_of_classes() -> None:
    plain, changed = tasks(), tasks(transform=RandomAffine(rotation=45))
    first, second = plain.plan(3, generator(7)), changed.plan(3, generator(7))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert set(second) - set(first) == {"support_transform", "query_transform"}
    for a, b in zip(plain.episodes(first), changed.episodes(second), strict=True):
        assert a.x.shape == b.x.shape
        assert not torch.allclose(a.x, b.x)


def test_shuffling_moves_the_support_and_nothing_else() -> None:
    """The draw is the same one, also of the tasks after it, and each picture keeps its label and its augmentation."""
    change = RandomAffine(rotation=30)
    plain, mixed = tasks(transform=change), tasks(transform=change, shuffle=True)
    g, h = generator(11), generator(11)
    for _ in range(2):
        first, second = plain.plan(20, g), mixed.plan(20, h)
        order = second.pop("support_order")
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
        a, b = plain.episodes(first), mixed.episodes(second | {"support_order": order})
        rows = torch.arange(20)[:, None]
        assert torch.equal(b.support.x, a.support.x[rows, order])
        assert torch.equal(b.support.y, a.support.y[rows, order])
        assert same(Episode(a.query, a.query), Episode(b.query, b.query))
        assert len({tuple(row) for row in order.tolist()}) > 15
        assert torch.equal(order.sort()[0], torch.arange(8).expand(20, 8))


def test_varying_episodes_are_shuffled_too() -> None:
    plain, mixed = (tasks(n_shot_range=(1, 5), shuffle=on) for on in (False, True))
    for first, second in zip(plain.plan(9, generator(12)), mixed.plan(9, generator(12)), strict=True):
        a, b = plain.episodes(first).support, mixed.episodes(second).support
        assert torch.equal(b.x, a.x[:, second["support_order"][0]])
        assert torch.equal(b.y, a.y[:, second["support_order"][0]])


def test_varying_episodes_come_one_by_one() -> None:
    source = tasks(n_way_range=(2, 9), n_shot_range=(1, 5), transform=RandomAffine())
    assert source.varying
    assert source.spec.n_outputs == 9
    assert source.n_shot == 5
    plans = source.plan(30, generator(8))
    assert isinstance(plans, list)
    assert len(plans) == 30
    assert len({plan["classes"].shape for plan in plans}) > 3
    for plan in plans:
        episode = next(unbind(source.episodes(plan)))
        n_way = plan["classes"].shape[1]
        assert episode.support.n_way == n_way
        check_episode(episode, source.spec._replace(n_outputs=n_way))
        assert torch.equal(episode.query.y.bincount(), torch.full((n_way,), 3))
        for split in episode:
            classes = bytes_of(split.x).flatten(1)[:, 0].long() - 1
            assert torch.equal(classes, plan["classes"][0][split.y])


def test_to_moves_this_source_and_returns_it() -> None:
    source = tasks()
    assert source.to("cpu") is source
    assert source.device == source.images.device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_plan_gathers_the_same_episodes_on_a_gpu() -> None:
    source = tasks(telling_images(rotations=True), transform=RandomAffine(rotation=20))
    plan = source.plan(4, generator(10))
    here, there = source.episodes(plan), source.to("cuda").episodes(plan)
    for a, b in zip(here, there, strict=True):
        assert b.x.device.type == b.y.device.type == "cuda"
        assert torch.equal(a.y, b.y.cpu())
        # Both devices interpolate in float32, in another order of operations.
        assert torch.allclose(a.x, b.x.cpu(), atol=1e-5)


class CallCounter(TorchFunctionMode):
    """Counts calls from Python into torch."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transform", [None, RandomAffine(rotation=10)])
def test_no_python_work_per_task_or_image(transform: RandomAffine | None) -> None:
    def calls(n_tasks: int, n_way: int) -> int:
        source = tasks(telling_images(rotations=True), n_way=n_way, transform=transform)
        with CallCounter() as counter:
            source.episodes(source.plan(n_tasks, generator(9)))
        return counter.calls

    assert calls(1, 2) == calls(16, 20) > 5


def test_door_names_the_class_that_is_too_small() -> None:
    with pytest.raises(UserError, match="got 8 of class 'c0'"):
        tasks(n_query=7)
    with pytest.raises(UserError, match="n_way=13 classes, got 12"):
        tasks(n_way=13)


def test_classes_of_a_task_within_a_group_are_turned_alike():
    images = ImageSet(
        torch.zeros(12, 1, 4, 4, dtype=torch.uint8),
        torch.arange(6).repeat_interleave(2),
        tuple("abcdef"),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        ("x", "y"),
        rotations=True,
    )
    shape = {"name": "turned", "n_way": 3, "n_shot": 1, "n_query": 1, "within_group": 1.0}
    seen = set()
    for apart in (True, False):
        source = ImageTasks(images, **shape, turns_apart=apart)
        classes = source.plan(40, generator(0, "turned"))["classes"]
        turns, letters = classes // 6, classes % 6
        assert bool((letters // 3 == letters[:, :1] // 3).all()), "one group each"
        assert bool((turns == turns[:, :1]).all()) is apart
        seen |= set(turns[:, 0].tolist())
    assert seen == {0, 1, 2, 3}
