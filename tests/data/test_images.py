"""The image set: gathering, virtual rotated classes, subsets, the content hash and its door."""

import hashlib
import struct
from dataclasses import replace

import pytest
import torch

from kshot.core import UserError, generator
from kshot.data.images import ImageSet, quarter_turns


def image_set(n_each: int = 3, n_classes: int = 4, shape: tuple[int, int, int] = (1, 5, 5), **options) -> ImageSet:
    n = n_each * n_classes
    return ImageSet(
        images=torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(0, "images")),
        labels=torch.arange(n) % n_classes,
        class_names=tuple(f"c{c}" for c in range(n_classes)),
        groups=torch.arange(n_classes) // 2,
        group_names=tuple(f"g{g}" for g in range((n_classes + 1) // 2)),
        **options,
    )


def test_gather_scales_bytes_to_unit_floats() -> None:
    images = image_set()
    index = torch.tensor([[0, 5, 11], [5, 5, 1]])
    x = images.gather(index)
    assert x.shape == (2, 3, 1, 5, 5)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.equal(x, images.images[index].float() / 255)


def test_gather_reaches_both_ends_of_the_range() -> None:
    images = replace(
        image_set(n_each=1, n_classes=2), images=torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    )
    assert images.gather(torch.tensor([0, 1])).flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_rotated_examples_are_rot90_of_the_stored_ones(channels: int) -> None:
    images = image_set(shape=(channels, 6, 6), rotations=True)
    n = images.images.shape[0]
    x = images.gather(torch.arange(len(images)))
    for virtual in range(4 * n):
        expected = torch.rot90(images.images[virtual % n], virtual // n, (-2, -1)).float() / 255
        assert torch.equal(x[virtual], expected)


def test_rotated_classes_have_their_own_labels_names_and_their_groups() -> None:
    stored, images = image_set(), image_set(rotations=True)
    assert (images.n_classes, images.n_examples, len(images)) == (16, 48, 48)
    labels = images.all_labels()
    assert torch.equal(labels.bincount(), torch.full((16,), 3))
    for virtual, label in enumerate(labels.tolist()):
        assert label == (virtual // 12) * 4 + int(stored.labels[virtual % 12])
    names = images.all_class_names()
    assert len(set(names)) == 16
    assert names[:5] == ("c0", "c1", "c2", "c3", "c0 @90")
    assert images.all_groups().tolist() == [0, 0, 1, 1] * 4


def test_without_rotations_nothing_is_virtual() -> None:
    images = image_set()
    assert (images.n_classes, images.n_examples) == (4, 12)
    assert torch.equal(images.all_labels(), images.labels)
    assert torch.equal(images.all_groups(), images.groups)
    assert images.all_class_names() == images.class_names


def test_quarter_turns_keeps_other_dtypes_and_empty_batches() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert torch.equal(quarter_turns(x, torch.tensor([3])), torch.rot90(x, 3, (-2, -1)))
    assert quarter_turns(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 3, 3)


def test_subset_relabels_in_the_order_given_and_drops_empty_groups() -> None:
    images = image_set(rotations=True)
    some = images.subset([3, 2])
    assert some.class_names == ("c3", "c2")
    assert some.group_names == ("g1",)
    assert some.groups.tolist() == [0, 0]
    assert some.rotations
    for new, old in ((0, 3), (1, 2)):
        assert torch.equal(some.images[some.labels == new], images.images[images.labels == old])


@pytest.mark.parametrize("classes", [[], [4], [-1], [1, 1]])
def test_subset_refuses_unknown_and_repeated_classes(classes: list[int]) -> None:
    with pytest.raises(UserError, match="distinct classes"):
        image_set().subset(classes)


def test_sha256_follows_the_contents() -> None:
    images = image_set()
    changed = images.images.clone()
    changed[7, 0, 2, 2] ^= 1
    others = [
        replace(images, images=changed),
        replace(images, images=images.images.view(12, 1, 25, 1)),
        replace(images, labels=images.labels.flip(0)),
        replace(images, class_names=("c0", "c1", "c2", "x")),
        replace(images, groups=images.groups.flip(0)),
        replace(images, group_names=("g0", "x")),
    ]
    assert len({images.sha256, *(other.sha256 for other in others)}) == len(others) + 1


def test_sha256_does_not_follow_what_is_no_content() -> None:
    images = image_set()
    strided = images.images.transpose(-2, -1).contiguous().transpose(-2, -1)
    assert not strided.is_contiguous()
    assert images.sha256 == image_set().sha256
    assert images.sha256 == replace(images, rotations=True).sha256
    assert images.sha256 == replace(images, images=strided).sha256
    assert images.sha256 == images.to("cpu").sha256


def test_sha256_is_a_known_value() -> None:
    """Records keep these hashes, so the recipe must never change unnoticed."""
    images = ImageSet(
        images=torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2),
        labels=torch.tensor([0, 1]),
        class_names=("a", "b"),
        groups=torch.tensor([0, 0]),
        group_names=("g",),
    )
    names = b"((2, 1, 2, 2), ('a', 'b'), ('g',))"
    labels, groups = struct.pack("<2q", 0, 1), struct.pack("<2q", 0, 0)
    assert images.sha256 == hashlib.sha256(names + bytes(range(8)) + labels + groups).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(12, 1, 5, 5)}, "uint8"),
        ({"images": torch.zeros(12, 5, 5, dtype=torch.uint8)}, "uint8"),
        ({"images": torch.zeros(12, 1, 4, 5, dtype=torch.uint8), "rotations": True}, "square"),
        ({"labels": torch.arange(11) % 4}, "labels"),
        ({"labels": torch.zeros(12)}, "labels"),
        ({"labels": torch.arange(12) % 5}, r"labels 0..3 .* got 0..4"),
        ({"labels": torch.arange(12) % 4 - 1}, "got -1..2"),
        ({"groups": torch.tensor([0, 0, 1, 2])}, r"groups 0..1"),
        ({"groups": torch.tensor([0])}, "groups"),
    ],
)
def test_door_says_what_does_not_fit(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(image_set(), **change)
