"""Data of your own: pictures and their classes become tasks; a learner learns new classes from one picture each.

    python examples/own_data.py

Here the pictures are drawn: polygons with 3 to 22 corners, turned and noisy. In place of ``draw``, read your files.
"""

import math

import torch
from PIL import Image, ImageDraw

from kshot import Conv4, EpisodeLoader, ImageSet, ImageTasks, ProtoNet, TrainConfig, Trainer, evaluate, generator

SIDE, EACH = 28, 12


def draw(corners: int, dice: torch.Generator) -> torch.Tensor:
    """Draw a star with so many points, turned at random.

    Args:
        corners: how many points.
        dice: source of randomness.
    """
    turn, size = torch.rand(2, generator=dice).tolist()
    points = []
    for i in range(2 * corners):
        angle = math.pi * i / corners + 2 * math.pi * turn
        radius = (9 + 4 * size) * (1.0 if i % 2 else 0.45)
        points.append((SIDE / 2 + radius * math.cos(angle), SIDE / 2 + radius * math.sin(angle)))
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).polygon(points, fill=200)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, SIDE, SIDE)
    return pixels + torch.randint(0, 50, pixels.shape, generator=dice, dtype=torch.uint8)


def pictures() -> ImageSet:
    """Put all pictures into one tensor, with a label for each."""
    dice = generator(0, "pictures")
    shapes = range(3, 23)
    return ImageSet(
        images=torch.stack([draw(corners, dice) for corners in shapes for _ in range(EACH)]),
        labels=torch.arange(len(shapes)).repeat_interleave(EACH),
        class_names=tuple(f"star of {corners}" for corners in shapes),
        groups=torch.zeros(len(shapes), dtype=torch.int64),
        group_names=("stars",),
    )


def main(steps: int = 150, n_episodes: int = 200) -> float:
    """Train on two thirds of the classes, test on the others.

    Args:
        steps: outer steps.
        n_episodes: test episodes.
    """
    images = pictures()
    # Split classes, not pictures: what is tested must be new.
    new = list(range(0, 20, 3))
    known = [c for c in range(20) if c not in new]
    train, test = (
        ImageTasks(images.subset(classes), name="stars", n_way=5, n_shot=1, n_query=4) for classes in (known, new)
    )

    learner = ProtoNet(Conv4(n_filters=16))
    before = evaluate(learner, test, n_episodes=n_episodes).estimate
    Trainer(learner, EpisodeLoader(train, n_tasks=4, seed=0), TrainConfig(steps=steps, validate_every=0)).fit()
    after = evaluate(learner, test, n_episodes=n_episodes).estimate
    print(f"stars never seen before, 5-way 1-shot: {before} before training, {after} after")
    return after.mean


if __name__ == "__main__":
    main()
