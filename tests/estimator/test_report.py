from __future__ import annotations

import dataclasses
import html.parser
import io
import re
from collections import Counter

import pytest
import torch
from PIL import Image

from kshot.core import UserError
from kshot.estimator.fit import Fit, add_class, fit
from kshot.estimator.heads import units
from kshot.estimator.report import NewExamples, Subject, classes, confidence, maps, render_subject, shots, wording

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(html.parser.HTMLParser):
    """Collects what a page refers to, its texts, and that its elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.unnamed = 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")]
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.unnamed += tag == "img" and "alt" not in known
        self.unnamed += tag == "svg" and not ("aria-hidden" in known or known.get("aria-label"))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.texts.append(data)


def draw(n_classes: int, n_shots: int, *, noise: float = 0.7, dim: int = 12, seed: int = 0):
    """Blobs: their middles, embeddings and labels."""
    g = torch.Generator().manual_seed(seed)
    middles = torch.randn(n_classes, dim, generator=g)
    y = torch.arange(n_classes).repeat_interleave(n_shots)
    return middles, middles[y] + noise * torch.randn(len(y), dim, generator=g), y


def subject_of_fit(fitted: Fit, **changes) -> Subject:
    texts = [f"text {i} <of> class {int(c)}" for i, c in enumerate(fitted.y)]
    names = [f"class {c} <b>&" for c in range(fitted.n_classes)]
    return dataclasses.replace(Subject(fitted, names, texts, texts, "text", "text:made-up"), **changes)


@pytest.fixture(scope="module")
def full() -> Subject:
    """Five classes with a wrong label, duplicates under two labels, and new examples, some of no class."""
    middles, z, y = draw(5, 8)
    y[2] = 1
    z[17] = z[9] + 1e-3
    g = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, -1, -1])
    new = torch.cat([middles[labels[:8]] + 0.5 * torch.randn(8, 12, generator=g), 4 * torch.randn(2, 12, generator=g)])
    names = [f"new {i}" for i in range(10)]
    return subject_of_fit(fit(z, y, 5), new=NewExamples(new, names, names.__getitem__, labels))


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_full_report_has_every_section_and_refers_to_nothing_outside(full):
    page = render_subject(full)
    assert headings(page) == [
        "New examples",
        "Doubtful labels",
        "Near-duplicates",
        "Classes",
        "Confusion",
        "Embedding map",
        "Confidence",
        "What it does not know",
        "Heads tried",
        "The model",
    ]
    checker = Checker(page)
    assert checker.unnamed == 0
    assert checker.references
    for reference in checker.references:
        assert reference.startswith("data:") or reference.removeprefix("#") in checker.ids
    assert "http" not in page.replace("http-equiv", "")


def test_names_and_texts_are_escaped(full):
    page = render_subject(full)
    assert "<of>" not in page
    assert "class 1 <b>" not in page
    assert "class 1 &lt;b&gt;&amp;" in page


def test_the_same_model_gives_the_same_page(full):
    again = fit(full.fit.z, full.fit.y, 5)
    assert render_subject(dataclasses.replace(full, fit=again)) == render_subject(full)


def test_the_table_counts_the_shots_left_out(full):
    held_out = full.fit.held_out
    assert held_out is not None
    answers = held_out.logits.argmax(1)
    view = classes.table(full)
    assert view["left_out"] == 0
    assert not view["listed"]
    weakness = []
    for row in view["drawn"]:
        c = full.classes.index(row["name"])
        mine = held_out.labels == c
        right = int((answers[mine] == c).sum())
        assert row["score"] == f"{right} of {int(mine.sum())}"
        assert row["shots"] == int((full.fit.y == c).sum())
        wrong = Counter(full.classes[a] for a in answers[mine].tolist() if a != c)
        assert {x["name"]: x["times"] for x in row["confused"]}.items() <= wrong.items()
        assert sum(x["times"] for x in row["confused"]) + row["more"] <= sum(wrong.values())
        weakness.append(right / int(mine.sum()))
    assert weakness == sorted(weakness)
    assert min(weakness) < 1  # or this test saw nothing confused


def test_the_most_confused_pairs_count_both_directions(full):
    held_out = full.fit.held_out
    assert held_out is not None
    wrong = Counter()
    for label, answer in zip(held_out.labels.tolist(), held_out.logits.argmax(1).tolist(), strict=True):
        if label != answer:
            wrong[frozenset((label, answer))] += 1
    pairs = classes.confusion(full)["pairs"]
    first = frozenset(full.classes.index(pairs[0][k]) for k in ("first", "second"))
    assert pairs[0]["times"] == wording.count(max(wrong.values()), "mix-up")
    assert wrong[first] == max(wrong.values())
    assert len(pairs) == min(len(wrong), classes.PAIRS)


def test_a_doubtful_shot_is_shown_with_other_shots_than_itself(full):
    cards = shots.doubts(full)["cards"]
    card = next(c for c in cards if c["look"]["text"] == full.looks[2])
    assert (card["label"], card["instead"]) == (full.classes[1], full.classes[0])
    assert len(card["near"]) == shots.NEIGHBOURS
    assert full.looks[2] not in [n["text"] for n in card["near"]]


def test_duplicates_under_two_labels_come_first_and_are_said(full):
    middle = full.fit.z.clone()
    middle[33] = middle[32]
    y = full.fit.y
    view = shots.duplicates(dataclasses.replace(full, fit=fit(middle, y, 5, head="cosine")))
    assert view["n"] == 2
    assert [c["crossing"] for c in view["cards"]] == [True, False]
    assert "1 pair of shots is nearly the same, under two labels." in " ".join(r["text"] for r in wording.remarks(full))


def test_new_examples_are_counted_and_wrong_ones_come_first(full):
    assert full.new is not None
    assert full.new.labels is not None
    p = full.fit.probabilities(full.new.z)
    inside = full.new.labels >= 0
    right = int((p.argmax(1) == full.new.labels)[inside].sum())
    view = shots.new_examples(full)
    facts = dict(view["facts"])
    assert f"({right} of 8;" in facts["Accuracy"]
    refused = full.fit.p_values(full.new.z) <= 0.05
    assert facts["Called unknown"].startswith(f"{int(refused[inside].sum())} of 8 of the classes")
    assert facts["Of no class"].startswith(f"{int(refused[~inside].sum())} of 2 ")
    wrong = [c["wrong"] for c in view["cards"]]
    assert wrong == sorted(wrong, reverse=True)
    assert sum(wrong) == 10 - right
    assert view["cards"][0]["truth"] in ("none of the classes", *full.classes)


def test_new_examples_without_labels_come_least_sure_first(full):
    assert full.new is not None
    unlabelled = dataclasses.replace(full, new=dataclasses.replace(full.new, labels=None))
    p = full.fit.probabilities(full.new.z).max(1).values
    view = shots.new_examples(unlabelled)
    assert view["cards"][0]["look"]["text"] == f"new {int(p.argmin())}"
    assert [name for name, _ in view["facts"]] == ["Judged", "Called unknown"]
    assert len(confidence.reliabilities(unlabelled)) == 1
    assert len(confidence.reliabilities(full)) == 2


def test_reliability_adds_up_over_blocks(full, monkeypatch):
    whole = confidence.reliabilities(full)
    monkeypatch.setattr("kshot.estimator.report.subject._CELLS", 7)
    assert confidence.reliabilities(full) == whole
    rows = whole[0]["rows"]
    assert sum(int(r["n"]) for r in rows) == len(full.fit.y)


def test_the_drawn_limit_is_where_p_values_reach_the_rate(full):
    reference = full.fit.reference
    some = torch.cat([reference, reference + 1e-4, torch.linspace(-50, 50, 200)])
    from kshot.estimator.unknown import p_values

    p = p_values(some, reference).double()
    for rate in (0.01, 0.03, 0.07, 0.1, 0.33, 0.5):
        limit = confidence._threshold(reference, rate)
        if limit is None:
            assert not bool((p <= rate).any())
        else:
            assert torch.equal(some > limit, p <= rate)


def test_one_shot_of_each_class_says_what_is_not_known():
    _, z, y = draw(4, 1)
    page = render_subject(subject_of_fit(fit(z, y, 4)))
    assert headings(page) == ["Classes", "Embedding map", "The model"]
    Checker(page)
    assert "can&#39;t be estimated" in page
    assert ">not known<" in page
    assert "Can vouch for" not in page


def test_a_class_with_one_shot_among_others_is_named():
    _, z, y = draw(4, 3)
    subject = subject_of_fit(fit(z[:-2], y[:-2], 4))
    assert "1 class of 4 has a single shot" in render_subject(subject)
    row = classes.table(subject)["drawn"][-1]
    assert (row["name"], row["accuracy"], row["whisker"]) == (subject.classes[3], "", "")


def test_after_a_class_was_added_old_estimates_are_not_shown():
    _, z, y = draw(3, 5)
    fitted = add_class(fit(z, y, 3), torch.randn(4, 12, generator=torch.Generator().manual_seed(3)))
    page = render_subject(subject_of_fit(fitted))
    assert "Classes were added or removed" in page
    assert "Confusion" not in headings(page)
    assert "Confidence" not in headings(page)


def test_two_classes_told_apart_perfectly():
    _, z, y = draw(2, 4, noise=0.01)
    page = render_subject(subject_of_fit(fit(z, y, 2)))
    Checker(page)
    assert "Confusion" not in headings(page)
    assert "Doubtful labels" not in headings(page)


def test_identical_embeddings_make_a_page():
    z = torch.ones(6, 3)
    Checker(render_subject(subject_of_fit(fit(z, torch.tensor([0, 0, 0, 1, 1, 1]), 2))))


def test_one_number_for_each_example_makes_a_page():
    z = torch.tensor([[1.0], [-1.0], [1.5], [-0.5]])
    Checker(render_subject(subject_of_fit(fit(z, torch.tensor([0, 1, 0, 1]), 2))))


def test_ten_thousand_classes_make_a_page_of_bounded_size():
    _, z, y = draw(10_000, 1, dim=8)
    page = render_subject(subject_of_fit(fit(z, y, 10_000)))
    assert len(page) < 1_500_000
    assert "8,980 more classes" in page
    assert "2,000 of 10,000 shots are drawn" in page


def test_many_confused_classes_make_a_matrix_of_some(full):
    _, z, y = draw(90, 3, noise=2.0)
    subject = subject_of_fit(fit(z, y, 90, head="cosine"))
    view = classes.confusion(subject)
    assert "classes that are mistaken most often" in view["note"]
    ranked = [((a, b), 1) for a in range(90) for b in range(a + 1, 90)]
    chosen = classes._chosen(subject, ranked)
    assert len(chosen) == len(set(chosen)) == classes.IN_MATRIX
    assert sorted(classes._seriated(full, [0, 1, 2, 3, 4])) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("n", "d"), [(30, 7), (6, 40)])
def test_the_map_shows_the_two_largest_components(n, d):
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    plane = maps.Plane(u)
    values = torch.linalg.svdvals((u - u.mean(0)).double()).square()
    assert plane.explained == pytest.approx((values[:2] / values.sum()).tolist(), rel=1e-6)
    placed = torch.tensor(plane.place(u), dtype=torch.double)
    assert placed.square().sum(0).tolist() == pytest.approx(values[:2].tolist(), rel=1e-6)


def test_a_part_of_many_shots_holds_every_class():
    y = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    part = maps._part(y, 12)
    assert torch.bincount(y[part]).tolist() == [5, 3, 4]


def test_the_label_of_a_class_stands_at_one_of_its_shots(full):
    u = units(full.fit.z, full.fit.head.centre)
    middles = maps._middles(u, full.fit.y, 5)
    assert full.fit.y[middles].tolist() == [0, 1, 2, 3, 4]


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), (value, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def test_pictures_stand_in_the_page(full):
    looks = [jpeg(6 * i) for i in range(len(full.fit.y))]
    looks[2] = b""
    names = [f"/photos/{'deep/' * 20}{i}.jpg" for i in range(len(full.fit.y))]
    subject = dataclasses.replace(full, looks=looks, names=names, kind="image", new=None)
    page = render_subject(subject)
    checker = Checker(page)
    assert 'body class="pictured"' in page
    assert "5 classes learnt from 40 pictures" in page
    assert sum(r.startswith("data:image/jpeg;base64,") for r in checker.references) > 40
    # The one whose picture is not kept is called by the end of its name.
    assert any(t.endswith("deep/2.jpg") and t.startswith("…") for t in map(str.strip, checker.texts))


@pytest.mark.parametrize(
    ("value", "long", "short"),
    [
        (0, "0%", "0%"),
        (1, "100%", "100%"),
        (0.5, "50.0%", "50%"),
        (1e-4, "< 0.1%", "< 1%"),
        (0.9999, "> 99.9%", "> 99%"),
        (1 - 1e-12, "100%", "> 99%"),
    ],
)
def test_shares_do_not_claim_certainty(value, long, short):
    assert (wording.share(value), wording.whole(value)) == (long, short)


def test_counts():
    assert [wording.count(n, w) for n, w in ((1, "class"), (2, "class"), (1200, "shot"))] == [
        "1 class",
        "2 classes",
        "1,200 shots",
    ]


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("sklearn", reason="the classifier has scikit-learn's interface")
    from kshot.estimator.classifier import FewShotClassifier

    _, z, y = draw(3, 6)
    labels = ["ant", "bee", "cat"]
    return FewShotClassifier(kind="vector").fit(z.numpy(), [labels[c] for c in y.tolist()])


def test_the_report_of_a_model_is_one_file(model, tmp_path):
    from kshot.estimator.report import write_model_report

    _, z, _ = draw(3, 2, seed=0)
    write_model_report(model, tmp_path / "a" / "report.html", X=z.numpy(), y=["ant", "bee", "dog", "cat", "cat", "ant"])
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    Checker(page)
    assert "3 classes learnt from 18 vectors" in page
    assert "of 5; 95% interval" in page
    assert "none of the classes" in page
    assert model.encoder_.fingerprint in page


def test_labels_of_new_examples_must_come_with_as_many_examples(model, tmp_path):
    from kshot.estimator.report import write_model_report

    with pytest.raises(UserError, match=r"label for each of 2 new examples, got 1"):
        write_model_report(model, tmp_path / "r.html", X=[[0.0] * 12] * 2, y=["ant"])
    with pytest.raises(UserError, match="labels only"):
        write_model_report(model, tmp_path / "r.html", y=["ant"])
    assert not list(tmp_path.iterdir())


def test_a_model_must_be_fitted(model, tmp_path):
    from kshot.estimator.report import write_model_report

    with pytest.raises(UserError, match="call fit"):
        write_model_report(type(model)(), tmp_path / "r.html")
