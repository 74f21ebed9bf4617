"""Pictures of sequences: the steps in order, wrong answers framed, the part of the memory that was used, a film."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kshot.core import Episode, Learner, Split, UserError
from kshot.data import Copy, NGrams
from kshot.evaluation import ReportInput, RunReport, gather, render
from kshot.evaluation.draw import Draw
from kshot.evaluation.gather_sequence import sequence_picture
from kshot.evaluation.metrics import bits
from kshot.evaluation.report.film import film, write_film
from kshot.evaluation.report.machine import machine
from kshot.evaluation.report.panels import locations
from kshot.evaluation.report.pixels import ABOVE, BELOW, ink, signed

N, M = 32, 4


class Machine(Learner):
    """Copies, but for the last vector, which it turns over; writes at N - 2, N - 1, 0, 1, ... and reads there again."""

    kinds = ("sequence",)

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(4.0))

    def adapt(self, support: Split) -> Tensor:
        return support.x[:-1, :-1]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        sign = torch.ones(len(state), 1)
        sign[-1] = -1
        return self.sure * (2 * state - 1) * sign

    def trace(self, episode: Episode) -> dict[str, Tensor]:
        n_read, n_asked = len(episode.support.y), len(episode.query.y)
        steps = torch.arange(n_read + n_asked)
        write = nn.functional.one_hot((N - 2 + steps.clamp(max=n_read - 1)) % N, N).float()
        read = nn.functional.one_hot((N - 2 + (steps - n_read).clamp(min=0)) % N, N).float()
        add = torch.zeros(len(steps), M)
        add[:n_read] = torch.linspace(-1, 1, M)
        memory = (write[:, :, None] * add[:, None]).cumsum(0)
        return {
            "read weightings": read[:, None],
            "write weightings": write[:, None],
            "memory": memory,
            "add": add[:, None],
            "read": (read[:, None] @ memory),
        }


@pytest.fixture
def shown():
    return sequence_picture(Machine(), Copy(min_length=5, max_length=5, n_bits=3), "Length: 5")


def test_a_picture_is_of_the_first_sequence_that_is_evaluated(shown) -> None:
    _, batch = next(Draw(Copy(min_length=5, max_length=5, n_bits=3), 1, 0).chunks(1))
    assert torch.equal(shown.inputs, torch.cat([batch.support.x[0], batch.query.x[0]]))
    assert torch.equal(shown.target, batch.query.y[0])
    assert (shown.n_read, shown.wrong) == (6, 3)
    odds = torch.logit(shown.output.double())
    assert shown.cost == pytest.approx(float(bits(odds, shown.target)), rel=1e-4)
    assert torch.equal(shown.output[:4] > 0.5, shown.target[:4])


def test_ink_and_colours() -> None:
    assert ink(torch.tensor([[0.0, 0.5, 2.0]])).tolist() == [[[0, 0, 0, 0], [0, 0, 0, 128], [0, 0, 0, 255]]]
    painted = signed(torch.tensor([[2.0, -1.0, 0.0]])).tolist()[0]
    assert painted[0] == [*ABOVE, 255]
    assert painted[1] == [*BELOW, 128]
    assert painted[2][3] == 0
    assert not bool(signed(torch.zeros(2, 2))[..., 3].any())


def images(svg: str) -> list[Image.Image]:
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_panels_stand_below_one_another_with_time_to_the_right(shown) -> None:
    svg = machine(shown)
    labels = re.findall(r'class="label"[^>]*>([^<]+)<', svg)
    expected = ["input", "target", "output", "added", "write weighting", "memory", "read weighting", "read back"]
    assert labels == expected
    assert "locations 28 to 5 of 32" in re.sub(r"</text><text[^>]*>", " ", svg)
    pictures = images(svg)
    assert [p.size for p in pictures] == [(11, 4), (5, 3), (5, 3), (11, 4), *[(11, 10)] * 3, (11, 4)]
    cover = torch.frombuffer(bytearray(pictures[0].getchannel("A").tobytes()), dtype=torch.uint8).view(4, 11)
    assert torch.equal(cover > 128, shown.inputs.T > 0.5)
    # The three wrong bits stand in the last column: each is framed once.
    (marks,) = re.findall(r'class="miss" d="([^"]+)"', svg)
    assert marks.count("M") == 3
    assert len({mark.split()[0] for mark in marks.split("M") if mark}) == 1
    tops = [float(y) for y in re.findall(r'<rect class="box" x="[\d.]+" y="([\d.]+)"', svg)]
    assert tops == sorted(tops)
    assert machine(shown, details=False).count("<image") == 3
    assert "3 of 15 bits wrong" in svg


def test_the_part_of_the_memory_that_was_used_goes_around_its_end(shown) -> None:
    first, count, told = locations(shown.trace)
    # Written at 30, 31, 0, 1, 2, 3: two more on either side are shown.
    assert (first, count, told) == (28, 10, "locations 28 to 5 of 32")
    everywhere = {"read weightings": torch.full((4, 1, N), 0.2)}
    assert locations(everywhere) == (0, N, "")
    assert locations({"read weightings": torch.full((4, 1, N), 1 / N)}) == (0, N, "")
    assert locations({"memory": torch.zeros(4, N, M)}) == (0, 0, "")


def test_a_report_of_sequences(shown) -> None:
    pictures = gather(Machine(), Copy(min_length=5, max_length=5, n_bits=3))
    assert [p.title for p in pictures.sequences] == ["The first sequence"]
    html = render(ReportInput([RunReport("machine", pictures=pictures)]))
    assert "<h2>Sequences</h2>" in html
    assert html.count("<image") == 8 + 2  # panels, and the memory at two moments
    assert "3 answered wrong" in html
    assert "heads stand" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    plain = sequence_picture(Machine(), Copy(), telling=False)
    assert plain.trace == {}
    bare = pictures.__class__(sequences=[plain])
    assert "heads stand" not in render(ReportInput([RunReport("machine", pictures=bare)]))


def test_one_channel_is_wide_enough_to_be_seen() -> None:
    class Guess(Machine):
        def adapt(self, support: Split) -> Tensor:
            return support.x

        def predict(self, state: Tensor, x: Tensor) -> Tensor:
            return self.sure * x

    svg = machine(sequence_picture(Guess(), NGrams(), telling=False))
    assert {float(h) for h in re.findall(r'class="box"[^>]* height="([\d.]+)"', svg)} == {12.0}
    assert 'class="miss fine"' in svg


def test_a_film_has_a_frame_for_each_step(shown, tmp_path) -> None:
    frames = film(shown)
    assert len(frames) == 11
    assert len({frame.size for frame in frames}) == 1
    assert frames[0].tobytes() != frames[3].tobytes()
    write_film(tmp_path / "m.gif", shown)
    with Image.open(tmp_path / "m.gif") as written:
        assert (written.n_frames, written.size) == (11, frames[0].size)
    with pytest.raises(UserError, match=r"expected a memory \(L, N, M\) in the trace, got nothing"):
        film(shown._replace(trace={}))


def test_a_trace_that_is_too_short() -> None:
    class Short(Machine):
        def trace(self, episode: Episode) -> dict[str, Tensor]:
            return {"memory": torch.zeros(2, N, M)}

    with pytest.raises(UserError, match=r"Short.trace gave 2 steps of 'memory', expected 41: one for each step"):
        sequence_picture(Short(), Copy(min_length=20, max_length=20))
