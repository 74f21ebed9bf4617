"""Pictures of learners that read an episode of classes step by step: what they show of it, as SVG, PNG and GIF."""

import re

import pytest
import torch
from PIL import Image
from tests.evaluation.conftest import bars
from tests.evaluation.test_machine import images

from kshot.algorithms import DNC, LSTM, MANN, NTM, ProtoNet
from kshot.core import Episode, Spec, UserError
from kshot.data.image_tasks import ImageTasks
from kshot.evaluation import ReportInput, RunReport, gather, render
from kshot.evaluation.gather_reading import reading_picture
from kshot.evaluation.report.film import film
from kshot.evaluation.report.machine import machine
from kshot.evaluation.report.panels import panels
from kshot.evaluation.report.pixels import LARGEST, strip
from kshot.evaluation.report.still import still, write_still
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

SPEC = Spec("classification", (1, 6, 6), 3)
SIZES = {"n_hidden": 5, "n_slots": 12, "slot_width": 4}
MAKE = {
    "mann": lambda: MANN(Flat((1, 6, 6)), SPEC, n_heads=2, **SIZES),
    "dnc": lambda: DNC(Flat((1, 6, 6)), SPEC, n_heads=2, **SIZES),
    "ntm": lambda: NTM(Flat((1, 6, 6)), SPEC, n_heads=2, **SIZES),
    "lstm": lambda: LSTM(Flat((1, 6, 6)), SPEC, n_hidden=5, n_layers=2),
}
HEADS, ONE = (2, 12), (1, 12)
SHAPES = {
    "mann": {"key": (2, 4), "write weightings": HEADS, "read weightings": HEADS, "usage": ONE, "read": (2, 4)},
    "dnc": {
        "add": (1, 4),
        "erase": (1, 4),
        "write weightings": ONE,
        "read weightings": HEADS,
        "usage": ONE,
        "read": (2, 4),
    },
    "ntm": {"add": (2, 4), "erase": (2, 4), "write weightings": HEADS, "read weightings": HEADS, "read": (2, 4)},
    "lstm": {"hidden units": (2, 5)},
}


@pytest.fixture
def episode() -> Episode:
    return synthetic_episode(SPEC, n_shot=2, n_query=4, dtype=torch.float32)


def pictured(name: str, episode: Episode):
    with torch.no_grad():
        return reading_picture(MAKE[name]().eval(), episode)


@pytest.mark.parametrize("name", MAKE)
def test_every_reader_tells_what_its_cell_does(name: str, episode: Episode) -> None:
    learner = MAKE[name]().eval()
    told = learner.trace(episode)
    memory = {} if name == "lstm" else {"memory": (12, 4)}
    wanted = {"answers": (3,), **SHAPES[name], **memory}
    assert {key: tuple(t.shape) for key, t in told.items()} == {key: (18, *shape) for key, shape in wanted.items()}
    assert not any(t.requires_grad for t in told.values())
    with torch.no_grad():
        # Up to the first query nothing else was read than by an evaluation.
        first = learner.predict(learner.adapt(episode.support), episode.query.x[:1])
        x = learner.steps(episode)
        _, end = learner.cell.scan(x, learner.cell.start())
    torch.testing.assert_close(told["answers"][6:7], first)
    if name == "lstm":
        torch.testing.assert_close(told["hidden units"][-1], end.h)
    else:
        torch.testing.assert_close(told["memory"][-1], end.memory)


def test_the_weightings_of_an_ntm_are_of_heads_that_read_before_they_write(episode: Episode) -> None:
    learner = MAKE["ntm"]().eval()
    told = learner.trace(episode)
    before = torch.cat([learner.cell.start().memory[None], told["memory"][:-1]])
    torch.testing.assert_close(told["read weightings"] @ before, told["read"])
    w, e, a = (told[key] for key in ("write weightings", "erase", "add"))
    stays = (1 - w[..., None] * e[:, :, None]).prod(1)
    torch.testing.assert_close(told["memory"], before * stays + (w[..., None] * a[:, :, None]).sum(1))


def test_a_picture_shows_the_support_and_then_queries_of_every_class(episode: Episode) -> None:
    shown = pictured("mann", episode)
    assert (shown.n_read, len(shown.labels), tuple(shown.images.shape)) == (6, 18, (18, 1, 6, 6))
    assert shown.labels[:6].bincount().tolist() == [2, 2, 2]
    assert shown.labels[6:].bincount().tolist() == [4, 4, 4]
    assert shown.labels[:6].tolist() != sorted(shown.labels[:6].tolist())
    torch.testing.assert_close(shown.answers.sum(-1), torch.ones(18))
    assert torch.equal(shown.right, shown.answers.argmax(-1) == shown.labels)
    many = synthetic_episode(SPEC, n_shot=1, n_query=40, dtype=torch.float32)
    assert len(pictured("mann", many).labels) == 3 + 3 * ((32 - 3) // 3)


def test_learners_that_do_not_tell_have_no_picture(episode: Episode) -> None:
    assert reading_picture(ProtoNet(Flat((1, 6, 6))), episode) is None

    class Mute(LSTM):
        def trace(self, episode: Episode) -> dict[str, torch.Tensor]:
            told = super().trace(episode)
            del told["answers"]
            return told

    assert reading_picture(Mute(Flat((1, 6, 6)), SPEC, n_hidden=4), episode) is None

    class Short(LSTM):
        def trace(self, episode: Episode) -> dict[str, torch.Tensor]:
            return {"answers": torch.zeros(2, 3)}

    with pytest.raises(UserError, match=r"Short\.trace gave 2 steps of 'answers', expected 18"):
        reading_picture(Short(Flat((1, 6, 6)), SPEC, n_hidden=4), episode)


def test_panels_of_an_episode(episode: Episode) -> None:
    shown = pictured("mann", episode)
    svg = machine(shown)
    labels = re.findall(r'class="label"[^>]*>([^<]+)<', svg)
    heads = [label for name in ("key", "write weighting") for label in [name] * 2]
    assert labels == [
        *("example", "class", "answer"),
        *heads,
        *("usage", "memory", "read weighting", "read weighting", "read back", "read back"),
    ]
    assert [p.size for p in images(svg)][:3] == [(18 * 6, 6), (18, 3), (18, 3)]
    wrong = [int(step) for step in (~shown.right).nonzero() if step >= 6]
    (marks,) = re.findall(r'class="miss" d="([^"]+)"', svg)
    assert marks.count("M") == len(wrong) > 0
    assert ">support<" in svg
    assert ">queries<" in svg
    assert ">18<" not in svg
    assert ">15<" in svg


def test_eight_heads_are_all_shown() -> None:
    spec = Spec("classification", (4,), 3)
    learner = NTM(Flat((4,)), spec, n_heads=8, **SIZES)
    with torch.no_grad():
        shown = reading_picture(learner, synthetic_episode(spec, n_shot=1, n_query=2, dtype=torch.float32))
    assert shown.images is None
    found = panels(shown, 10.0)
    for name in ("added", "write weighting", "read weighting"):
        remarks = [p.remark for p in found if p.name == name]
        assert [r.split(",")[0] for r in remarks] == [f"head {i} of 8" for i in range(1, 9)]


def test_images_stand_side_by_side_as_ink_or_in_colour() -> None:
    light = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    light[1, :, :2] = 255
    found = strip(light)
    assert tuple(found.shape) == (4, 8, 4)
    assert not found[:, :4, 3].any()
    assert bool((found[:2, 4:, 3] == 255).all())
    assert torch.equal(strip(255 - light), found), "dark strokes on light ground are the same ink"
    colour = strip(torch.full((3, 3, 84, 84), 7, dtype=torch.uint8))
    assert tuple(colour.shape) == (LARGEST, 3 * LARGEST, 4)
    assert colour[0, 0].tolist() == [7, 7, 7, 255]


@pytest.mark.parametrize("name", MAKE)
def test_a_still_and_a_film(name: str, episode: Episode, tmp_path) -> None:
    shown = pictured(name, episode)
    write_still(tmp_path / "s.png", shown)
    with Image.open(tmp_path / "s.png") as written:
        assert written.size == still(shown).size
        assert written.size[0] == 2 * (118 + 8 + 22 * 18)
        assert len(written.getcolors(1 << 24)) > 50
    if name == "lstm":
        with pytest.raises(UserError, match=r"expected a memory .* got hidden units"):
            film(shown)
    else:
        assert len(film(shown)) == 18


@pytest.mark.parametrize("name", MAKE)
def test_a_report_of_a_reader(name: str) -> None:
    source = ImageTasks(bars(side=6), name="bars", n_way=3, n_shot=1, n_query=4)
    pictures = gather(MAKE[name](), source, n_episodes=2)
    (shown,) = pictures.readings
    assert len(shown.labels) == 3 + 12
    html = render(ReportInput([RunReport(name, pictures=pictures)]))
    assert "<h2>Read step by step</h2>" in html
    assert ("What the memory holds" in html) == (name != "lstm")
    assert ("A key is what is looked up" in html) == (name == "mann")
    assert ("in their hidden units" in html) == (name == "lstm")
    assert "3 examples of the support, then 12 queries, of which" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
