from __future__ import annotations

import html.parser
import math
import re
from dataclasses import replace

import pytest
import torch

from kshot.core import UserError
from kshot.evaluation import (
    Curve,
    Estimate,
    History,
    Pictures,
    Record,
    ReportInput,
    RunReport,
    accuracy_by_shots,
    evaluate,
    gather,
    record_of,
    render,
    scores_of,
    write_report,
)
from kshot.evaluation.report import axes, figures, tiles, wording
from kshot.evaluation.scores import Scores

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(html.parser.HTMLParser):
    """Collects what a page refers to, and that its elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.images_without_alt = self.charts_without_label = 0
        self.headings: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset")]
        self.images_without_alt += tag == "img" and "alt" not in known
        self.charts_without_label += tag == "svg" and not ("aria-hidden" in known or known.get("aria-label"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


@pytest.fixture
def runs(learner, source, source_of_shots) -> list[RunReport]:
    """Two learners with every part of a report."""
    made = []
    for name, gain in (("Good <b>", 1.0), ("Bad & 'ugly'", -1.0)):
        who = type(learner)(gain)
        scores = evaluate(who, source, n_episodes=24)
        record = record_of(scores, who, source, algorithm="centroid", split="meta_test", command="kshot <evaluate>")
        history = History([(i, 2 - i / 300) for i in range(400)], [(100, 0.5), (200, 0.625)])
        shots = accuracy_by_shots(who, source_of_shots, [1, 2], n_episodes=10)
        steps = Curve("inner steps", "accuracy", (0, 1), (Estimate(0.2, 0.01, 10), Estimate(0.8, 0.02, 10)))
        made.append(RunReport(name, record, scores, history, shots, steps, gather(who, source, n_episodes=10)))
    return made


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_full_report_has_every_section_and_stands_alone(runs):
    page = render(ReportInput(runs, notes=("A note.",)))
    found = Checker(page)

    assert headings(page) == [
        *("Results", "Training", "Shots and inner steps", "Sampled episodes", "Confused classes", "Embedding"),
        *("Confidence", "How to repeat this", "Notes"),
    ]
    assert found.references
    assert all(r.startswith("data:image/png;base64,") for r in found.references)
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"url\(|@import|<script|<link", page)
    assert (found.images_without_alt, found.charts_without_label) == (0, 0)
    assert found.headings[0] == "h1"
    assert found.headings.count("h1") == 1


def test_names_are_escaped(runs):
    page = render(ReportInput(runs, title="<script>alert(1)</script>", introduction="1 < 2"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Good <b>" not in page
    assert "Good &lt;b&gt;" in page
    assert "bar <" not in page  # class names of the synthetic images
    assert "bar &lt;" in page
    assert "kshot &lt;evaluate&gt;" in page


def test_numbers_of_the_table(runs):
    page = render(ReportInput(runs))
    for run in runs:
        assert run.estimate is not None
        mean, half = wording.number(run.estimate, "accuracy")
        assert page.count(f'{mean} <span class="half">± {half}</span>') == 1
    assert "3-way 1-shot tasks: 24 episodes of meta_test, drawn with seed 0" in page
    assert "chance is 33.33%" in page
    assert "Good &lt;b&gt; is better" in page
    assert "p &lt; 0.001" in page


def test_a_paired_difference_is_not_claimed_on_different_episodes(runs, learner, source):
    other = evaluate(learner, source, n_episodes=24, seed=9)
    assert "Differences" in render(ReportInput(runs))
    assert "Differences" not in render(ReportInput([runs[0], RunReport("other", scores=other)]))


def test_records_alone_are_enough_to_compare(runs):
    page = render(ReportInput([RunReport(r.name, record=r.record) for r in runs]))
    Checker(page)
    assert headings(page) == ["Results", "Confidence", "How to repeat this"]
    assert "Differences" in page


def test_a_worse_error_is_not_called_better(line, sinusoid):
    few, many = (evaluate(type(line)(n), sinusoid, n_episodes=60) for n in (0, 3))
    few = replace(few, per_episode={"mse": many.per_episode["mse"] + 0.5 + torch.arange(60) / 100})
    page = render(ReportInput([RunReport("few", scores=few), RunReport("many", scores=many)]))
    assert "many is better" in page
    assert "0 to 60" in page


def bare(record: Record) -> Record:
    return replace(record, extra={}, environment={}, commit="", data_sha256="")


@pytest.mark.parametrize(
    "part",
    [
        "nothing",
        "record",
        "scores",
        "history",
        "empty history",
        "by_shots",
        "by_step",
        "pictures",
        "no pictures",
        "command",
    ],
)
def test_any_part_may_stand_alone(runs, part):
    full = runs[0]
    alone = {
        "nothing": RunReport("a"),
        "record": RunReport("a", record=bare(full.record)),
        "empty history": RunReport("a", history=History([], [])),
        "no pictures": RunReport("a", pictures=Pictures()),
        "command": RunReport("a", command="kshot demo"),
    }
    run = alone.get(part) or RunReport("a", **{part: getattr(full, part)})
    page = render(ReportInput([run]))
    Checker(page)
    assert "None" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    expected = {
        "nothing": [],
        "empty history": [],
        "no pictures": [],
        "history": ["Training"],
        "command": ["How to repeat this"],
    }
    if part in expected:
        assert headings(page) == expected[part]
    else:
        assert headings(page)


@pytest.mark.parametrize(
    "points", [[(1.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 1e-9), (5.0, 1e9)]]
)
def test_degenerate_curves_are_drawn(points):
    page = render(ReportInput([RunReport("a", history=History(points, points))]))
    Checker(page)
    assert "nan" not in page
    assert "inf" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).replace("inner", "")


def test_a_perfect_learner_has_no_width(runs):
    perfect = replace(runs[0].scores, per_episode={"accuracy": torch.ones(24, dtype=torch.float64)})
    page = render(ReportInput([RunReport("a", scores=perfect), RunReport("b", scores=perfect)]))
    Checker(page)
    assert "100.00" in page
    assert "no clear difference" in page


def test_regression_report(line, sinusoid):
    scores = evaluate(line, sinusoid, n_episodes=10)
    record = record_of(scores, line, sinusoid, algorithm="line", split="meta_test")
    run = RunReport(
        "line", record, scores, History([(1, 3.0)], [(1, -2.5), (2, -2.0)]), pictures=gather(line, sinusoid, n_steps=2)
    )
    page = render(ReportInput([run]))
    Checker(page)
    assert headings(page) == ["Results", "Training", "Sampled tasks", "How to repeat this"]
    assert "5-shot regression tasks" in page
    assert "validation mean squared error: 2.5 at 1" not in page
    assert ">line: 2.5 at 1 outer step<" in page  # the trainer's -2.5 is an error of 2.5
    assert page.count('class="truth"') == 4 + 1  # four tasks and the key


def test_report_is_written_whole(runs, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, ReportInput(runs))
    assert path.read_text(encoding="utf-8") == render(ReportInput(runs))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_size < 300_000


def test_bad_inputs_are_refused(runs):
    with pytest.raises(UserError, match="at least one run"):
        render(ReportInput([]))
    with pytest.raises(UserError, match="different names"):
        render(ReportInput([runs[0], runs[0]]))


def test_the_scores_of_a_run_come_from_its_record(runs):
    run = RunReport("a", record=runs[0].record)
    kept = scores_of(runs[0].record)
    assert kept is not None
    assert run.known_scores is not None
    assert torch.equal(run.known_scores.per_episode["accuracy"], kept.per_episode["accuracy"])
    assert run.estimate == runs[0].estimate


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-5, 5, [-4, -2, 0, 2, 4]), (0.97, 0.99, [0.97, 0.975, 0.98, 0.985, 0.99])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert axes.nice_ticks(low, high) == pytest.approx(expected)


def test_frame_places_values_linearly_and_by_logarithm():
    frame = axes.Frame((0, 10), (1, 100), width=144, height=166, log_y=True, bottom=40)
    left, right = frame.px(0), frame.px(10)
    assert (left, right) == (44, 130)
    assert frame.px(5) == pytest.approx((left + right) / 2)
    assert frame.py(1) == 126
    assert frame.py(100) == 26
    assert frame.py(10) == pytest.approx(76)


def test_line_chart_draws_each_point_where_it_belongs():
    series = figures.Series("a", 0, [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5)], markers=True)
    drawn = figures.line_chart([series], x_label="x", y_label="y", description="d")
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[1][1] < places[2][1] < places[0][1]  # larger values stand higher
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.11)


@pytest.mark.parametrize(
    ("mean", "half", "metric", "expected"),
    [
        (0.98734, 0.00211, "accuracy", ("98.73", "0.21")),
        (0.441, 0.0153, "accuracy", ("44.1", "1.5")),
        (1.0, 0.0, "accuracy", ("100.00", "0.00")),
        (0.6712, 0.0449, "mse", ("0.671", "0.045")),
        (12.3, 15.0, "mse", ("12", "15")),
    ],
)
def test_numbers_have_the_digits_that_their_interval_supports(mean, half, metric, expected):
    assert wording.number(Estimate(mean, half, 600), metric) == expected


def test_words():
    assert wording.number(Estimate(-0.02, 0.001, 9), "accuracy", signed=True)[0] == "\N{MINUS SIGN}2.00"
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert [wording.duration(s) for s in (0.4, 185, 7260)] == ["0.4 s", "3 min 5 s", "2 h 1 min"]
    assert [wording.p_value(p) for p in (0.0001, 0.0312)] == ["p < 0.001", "p = 0.031"]


def test_tiles_show_ink_on_paper_and_keep_colours():
    import base64
    import io

    from PIL import Image

    def decoded(tile):
        return Image.open(io.BytesIO(base64.b64decode(tile.src.partition(",")[2])))

    stroke = torch.zeros(1, 8, 8, dtype=torch.uint8)
    stroke[0, 3:5, 3:5] = 255
    for image in (stroke, 255 - stroke):
        tile = tiles.tile(image)
        assert tile.ink
        assert decoded(tile).getpixel((0, 0)) == 255
        assert decoded(tile).getpixel((3, 3)) == 0
    colour = torch.zeros(3, 200, 100, dtype=torch.uint8)
    colour[0] = 200
    tile = tiles.tile(colour)
    assert not tile.ink
    assert decoded(tile).size == (48, 96)
    assert decoded(tile).getpixel((5, 5)) == (200, 0, 0)


def test_long_histories_are_thinned_without_losing_their_mean(runs):
    from kshot.evaluation.report.curves import _smoothed

    points = [(float(i), math.sin(i)) for i in range(10_000)]
    thin = _smoothed("a", 0, points)
    assert len(thin.points) <= 160
    assert sum(y for _, y in thin.points) / len(thin.points) == pytest.approx(0, abs=0.01)
    assert all(low <= y <= high for (_, y), (low, high) in zip(thin.points, thin.band, strict=True))


def test_the_best_possible_is_a_line_in_the_validation() -> None:
    falls = History(loss=[], validation=[(10, -190.0), (20, -150.0), (30, -140.0)])
    bits = Scores("bits", {"bits": torch.tensor([140.0, 142.0])}, None, 0, 1.0, "x")
    one = RunReport("ntm", scores=bits, history=falls, best_validation=133.2)
    page = render(ReportInput([one]))
    assert page.count('class="goal"') == 1
    assert ">the best possible: 133.2</text>" in page
    assert "Dashed: what the best possible answers to the same sequences cost." in page
    (level,) = re.findall(r'class="goal" d="M[\d.]+ ([\d.]+)H', page)
    ends = [float(y) for y in re.findall(r'class="dot" cx="[\d.]+" cy="([\d.]+)"', page)][-3:]
    assert float(level) > max(ends), "no curve comes below what is possible"
    both = ReportInput([one, RunReport("lstm", scores=bits, history=falls, best_validation=131.0)])
    assert "the best possible for lstm: 131<" in render(both)
    assert 'class="goal"' not in render(ReportInput([RunReport("ntm", scores=bits, history=falls)]))
