"""Classes of your own from five pictures each: how good it will be, what is none of them, and one class more.

    python examples/own_classes.py

Needs kshot[sklearn]. The pictures are drawn here, and ``look`` turns each into a few numbers. With kshot[fit], leave
``encoder=look`` out and pass paths of photographs: a network trained on ImageNet then does the looking.
"""

import numpy as np
from PIL import Image, ImageDraw

from kshot.estimator import FewShotClassifier

COLOURS = {"cherry": (190, 30, 50), "lime": (110, 180, 40), "plum": (90, 40, 130), "lemon": (235, 215, 60)}
SIDE = 32


def draw(fruit: str, dice: np.random.Generator) -> Image.Image:
    """Draw a fruit on a table, somewhere, in some light.

    Args:
        fruit: one of ``COLOURS``.
        dice: source of randomness.
    """
    light = dice.uniform(0.7, 1.0)
    picture = Image.new("RGB", (SIDE, SIDE), tuple(int(light * v) for v in (200, 190, 180)))
    x, y, r = dice.uniform((10, 10, 6), (22, 22, 9))
    colour = tuple(int(light * v + dice.normal(0, 12)) for v in COLOURS[fruit])
    ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=colour)
    return picture


def look(pictures: list[Image.Image]) -> np.ndarray:
    """Tell how much there is of each of 24 hues: an encoder is any function from examples to vectors.

    Args:
        pictures: N of them.
    """
    hue, saturation, _ = np.moveaxis(np.stack([np.asarray(p.convert("HSV"), dtype=float) for p in pictures]), -1, 0)
    apart = np.abs(hue[..., None] - np.arange(0, 256, 256 / 24))
    near = np.exp(-0.5 * (np.minimum(apart, 256 - apart) / 10) ** 2)
    return np.sqrt((near * (saturation[..., None] > 90)).mean((1, 2)))


def main(n_shot: int = 5) -> float:
    """Fit, judge, predict, refuse, extend, save.

    Args:
        n_shot: pictures of each fruit.
    """
    dice = np.random.default_rng(0)
    known = ["cherry", "lime", "plum"]
    labels = [fruit for fruit in known for _ in range(n_shot)]
    model = FewShotClassifier(encoder=look, kind="image", unknown_rate=0.1)
    model.fit([draw(fruit, dice) for fruit in labels], labels)

    expected = model.expected_accuracy_
    print(f"before any test: {expected.accuracy:.0%} expected, at least {expected.low:.0%} (95% interval)")

    test_labels = [fruit for fruit in known for _ in range(50)]
    test = [draw(fruit, dice) for fruit in test_labels]
    accuracy = float(np.mean(model.predict_proba(test).argmax(1) == np.searchsorted(model.classes_, test_labels)))
    print(f"on {len(test)} new pictures: {accuracy:.0%}")

    lemons = [draw("lemon", dice) for _ in range(50)]
    refused = [float(np.mean(model.predict(pictures) == "unknown")) for pictures in (test, lemons)]
    print(f"called unknown: {refused[0]:.0%} of the fruit it learnt, {refused[1]:.0%} of lemons")

    model.add_class("lemon", lemons[:n_shot])
    named = model.classes_[model.predict_proba(lemons[n_shot:]).argmax(1)]
    print(f"with {n_shot} lemons added, of the others it names {np.mean(named == 'lemon'):.0%}")
    return accuracy


if __name__ == "__main__":
    main()
