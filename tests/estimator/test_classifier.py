"""The classifier: what it takes, what it answers, and what it refuses."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.core import UserError

pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kshot.estimator import FewShotClassifier


def clusters(n_classes: int = 3, n_shots: int = 6, dim: int = 5, seed: int = 0, noise: float = 0.3) -> Any:
    """Rows around one centre per class; the centres do not depend on the seed."""
    centres = np.random.default_rng(99).normal(size=(n_classes, dim)) * 2
    y = np.repeat(np.arange(n_classes), n_shots)
    return centres[y] + noise * np.random.default_rng(seed).normal(size=(len(y), dim)), y


def letters(texts: Any) -> np.ndarray:
    """How often each letter occurs: an encoder of texts without weights."""
    return np.array([[t.count(chr(97 + i)) + 0.1 for i in range(26)] for t in texts])


WORDS = ["aab", "aba", "abba", "xyx", "yxy", "xxyy"]
KINDS = ["ab", "ab", "ab", "xy", "xy", "xy"]


@pytest.fixture(scope="module")
def fitted() -> FewShotClassifier:
    return FewShotClassifier().fit(*clusters())


def test_learns_rows_of_numbers(fitted: FewShotClassifier) -> None:
    x, y = clusters(seed=1)
    assert fitted.kind_ == "table"
    assert fitted.n_features_in_ == 5
    assert (fitted.predict(x) == y).mean() > 0.9
    p = fitted.predict_proba(x)
    assert p.shape == (18, 3)
    np.testing.assert_allclose(p.sum(1), 1)
    assert fitted.expected_accuracy_ is not None
    assert fitted.expected_accuracy_.low < 1


def test_a_row_and_twice_that_row_are_not_the_same() -> None:
    # Without the added coordinate, heads would see directions only.
    x = np.array([[1.0, 1.0], [1.1, 1.0], [1.0, 1.1], [2.0, 2.0], [2.1, 2.0], [2.0, 2.1]]) * 10
    model = FewShotClassifier(encoder="vector:identity").fit(x, [0, 0, 0, 1, 1, 1])
    assert model.kind_ == "vector"
    table = FewShotClassifier().fit(x, [0, 0, 0, 1, 1, 1])
    assert table.predict([[9.0, 9.5], [25.0, 25.0]]).tolist() == [0, 1]
    assert table.fit_.z.shape[1] == 3


@pytest.mark.parametrize(
    ("y", "unknown"),
    [
        (["low", "high", "middle"], "unknown"),
        ([3, 7, 5], -1),
        ([0.0, 1.0, 2.0], -1),
        (np.array(["low", "high", "middle"], dtype=object), "unknown"),
    ],
)
def test_labels_keep_their_type(y: Any, unknown: Any) -> None:
    x, numbers = clusters()
    labels = np.asarray(y)[numbers]
    model = FewShotClassifier(unknown_rate=0.2).fit(x, labels)
    answers = model.predict(np.concatenate([x, 100 * np.eye(5)[:2]]))
    assert set(model.classes_.tolist()) == set(np.asarray(y).tolist())
    assert set(answers.tolist()) <= {*np.asarray(y).tolist(), unknown}
    assert model.unknown_label_ == unknown
    assert (answers[:18] == labels).mean() > 0.6


def test_truth_values_are_labels() -> None:
    x, y = clusters(2)
    model = FewShotClassifier().fit(x, y == 1)
    assert model.predict(x).dtype == np.bool_
    assert model.set_params(unknown_rate=0.5).predict(x).dtype == object


def test_refuses_about_as_many_as_stated() -> None:
    x, y = clusters(3, 30)
    model = FewShotClassifier(unknown_rate=0.1).fit(x, y)
    new, _ = clusters(3, 200, seed=5)
    refused = (model.predict(new) == -1).mean()
    assert 0.02 < refused < 0.25
    np.testing.assert_array_equal(model.predict(new) == -1, model.p_values(new) <= 0.1)


def test_a_p_value_that_equals_the_rate_is_refused() -> None:
    x, y = clusters(2, 2)
    model = FewShotClassifier(unknown_rate=0.2).fit(x, y)
    # All four shots left out were less strange than anything: p = 1 / 5, which in single precision is more than 0.2.
    object.__setattr__(model.fit_, "reference", torch.full((4,), -1e9))
    assert model.p_values(x).tolist() == [0.2] * 4
    assert model.predict(x).tolist() == [-1] * 4


def test_minus_one_may_be_a_class_but_not_stand_for_unknown_too() -> None:
    x, y = clusters(2)
    model = FewShotClassifier().fit(x, 2 * y - 1)
    assert set(model.predict(x)) == {-1, 1}
    with pytest.raises(UserError, match="unknown_label beside the classes, -1 is one"):
        FewShotClassifier(unknown_rate=0.1).fit(x, 2 * y - 1)
    assert FewShotClassifier(unknown_rate=0.1, unknown_label=0).fit(x, 2 * y - 1).unknown_label_ == 0


def test_decision_function_of_two_classes_is_one_column() -> None:
    x, y = clusters(2, 12, noise=4.0)
    model = FewShotClassifier().fit(x, y)
    scores = model.decision_function(x)
    assert scores.shape == (24,)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), model.predict_proba(x)[:, 1])


def test_missing_numbers_are_allowed_in_tables_only() -> None:
    x, y = clusters()
    x[0, 0] = np.nan
    model = FewShotClassifier().fit(x, y)
    assert np.isfinite(model.predict_proba(x)).all()
    with pytest.raises(ValueError, match="NaN"):
        FewShotClassifier(encoder="vector:identity").fit(x, y)


def test_an_answer_does_not_depend_on_what_else_is_asked(fitted: FewShotClassifier) -> None:
    x, _ = clusters(seed=2)
    together = fitted.predict_proba(x)
    alone = np.concatenate([fitted.predict_proba(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)


def test_texts_by_a_function() -> None:
    model = FewShotClassifier(encoder=letters).fit(WORDS, KINDS)
    assert model.kind_ == "text"
    assert model.predict(["bababa", "yyyx"]).tolist() == ["ab", "xy"]
    assert model.names_ == WORDS
    assert model.thumbnails_ == WORDS
    assert not hasattr(model, "n_features_in_")


def test_fitting_anew_forgets_the_columns_of_before() -> None:
    model = FewShotClassifier(kind="auto").fit(*clusters())
    model.set_params(encoder=letters).fit(WORDS, KINDS)
    assert not hasattr(model, "n_features_in_")


def test_rows_by_a_network_that_stays_as_it_was() -> None:
    x, y = clusters()
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5))
    model = FewShotClassifier(encoder=network).fit(x, y)
    assert network.training
    assert network[1].training
    np.testing.assert_array_equal(model.predict_proba(x), model.predict_proba(x))
    assert model.encoder_.name == "module:Sequential"


def test_nearest_shots_and_what_to_label_next(fitted: FewShotClassifier) -> None:
    x, _ = clusters()
    similarity, index = fitted.nearest(x, 2)
    assert index[:, 0].tolist() == list(range(18))
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-5)
    assert sorted(fitted.label_next(x, 100).tolist()) == list(range(18))
    assert len(fitted.label_next(x, 4)) == 4


def test_a_wrong_label_and_a_copy_are_found() -> None:
    x, y = clusters(noise=0.1)
    y[0] = 2
    x[8] = x[7]
    model = FewShotClassifier().fit(x, y, names=[f"shot {i}" for i in range(18)])
    assert model.doubts_()[0].index == 0
    assert model.classes_[model.doubts_()[0].instead] == 0
    assert (model.duplicates_()[0].first, model.duplicates_()[0].second) == (7, 8)
    assert model.names_[8] == "shot 8"


def test_adding_and_removing_a_class() -> None:
    x, y = clusters(4)
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    known = y < 3
    model = FewShotClassifier().fit(x[known], names[known])
    assert model.add_class("dog", x[~known]) is model
    assert model.classes_.tolist() == ["ant", "bee", "cat", "dog"]
    new, truth = clusters(4, seed=3)
    assert (model.predict(new) == np.array(["ant", "bee", "cat", "dog"])[truth]).mean() > 0.9
    assert model.expected_accuracy_ is None
    assert len(model.names_) == len(model.thumbnails_) == 24
    model.remove_class("bee")
    assert model.classes_.tolist() == ["ant", "cat", "dog"]
    assert len(model.names_) == len(model.thumbnails_) == len(model.fit_.z) == 18
    assert "bee" not in model.predict(new)


@pytest.mark.parametrize(
    ("label", "message"),
    [("ant", "expected a new class"), (3, "label of type str"), (None, "label of type str")],
)
def test_labels_that_cannot_be_added(label: Any, message: str) -> None:
    x, y = clusters()
    model = FewShotClassifier().fit(x, np.array(["ant", "bee", "cat"])[y])
    with pytest.raises(UserError, match=message):
        model.add_class(label, x[:2])
    assert len(model.classes_) == 3
    assert len(model.names_) == 18


def test_removing_what_is_not_there_or_all_but_one(fitted: FewShotClassifier) -> None:
    with pytest.raises(UserError, match=r"expected one of the classes 0, 1, 2, got 'heron'"):
        fitted.remove_class("heron")
    two = FewShotClassifier().fit(*clusters(2))
    with pytest.raises(UserError, match="at least two classes to remain"):
        two.remove_class(0)
    assert two.predict(clusters(2)[0]).shape == (12,)


def test_one_shot_of_each_class_works_and_says_what_is_not_known() -> None:
    x, y = clusters(n_shots=1)
    model = FewShotClassifier(unknown_rate=0.05).fit(x, y)
    assert model.predict(x).tolist() == [0, 1, 2]
    assert model.expected_accuracy_ is None
    assert model.p_values(x).tolist() == [1, 1, 1]
    assert model.doubts_() == []


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (["aa", "bb"], ["one", "one"], "at least two classes, got one class only"),
        (["aa", "bb"], ["one"], "a target for each of 2 examples, got 1"),
        (["aa", "bb"], None, "requires y to be passed, but the target y is None"),
        (["aa", "bb"], [None, "one"], "example 0 has none"),
        (["aa", 3], ["one", "two"], r"examples of one kind, got text \(example 0\) and table \(example 1\)"),
        ("aa", ["one"], "list of examples, got the single one 'aa'"),
        (["aa", "bb"], np.array(["one", 2], dtype=object), r"got text \(example 0\) and number \(example 1\)"),
        (["aa", "bb"], [0.5, 1.5], "Unknown label type"),
    ],
)
def test_what_cannot_be_learnt(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(encoder=letters).fit(x, y)


def test_settings_that_make_no_sense() -> None:
    x, y = clusters()
    with pytest.raises(UserError, match="unknown_rate between 0 and 1, got 5"):
        FewShotClassifier(unknown_rate=5).fit(x, y)
    with pytest.raises(UserError, match="head must be one of auto"):
        FewShotClassifier(head="tree").fit(x, y)
    with pytest.raises(UserError, match="kind must be one of auto"):
        FewShotClassifier(kind="sound").fit(x, y)
    with pytest.raises(UserError, match="fine-tuning adapts encoders of texts"):
        FewShotClassifier(finetune=True).fit(x, y)
    with pytest.raises(NotFittedError):
        FewShotClassifier().predict(x)
    with pytest.raises(UserError, match="a name for each of 18"):
        FewShotClassifier().fit(x, y, names=["one"])


def test_scikit_learn_puts_it_to_use() -> None:
    x, y = clusters()
    assert cross_val_score(FewShotClassifier(head="ridge"), x, y, cv=3).mean() > 0.9
    piped = make_pipeline(StandardScaler(), FewShotClassifier(head="cosine"))
    assert piped.fit(x, y).score(x, y) > 0.9
    search = GridSearchCV(FewShotClassifier(), {"head": ["cosine", "ridge"]}, cv=2).fit(x, y)
    assert search.best_params_["head"] in {"cosine", "ridge"}
    assert clone(FewShotClassifier(head="ridge", unknown_rate=0.1)).get_params()["unknown_rate"] == 0.1


def test_pickled_it_answers_the_same(fitted: FewShotClassifier) -> None:
    x, _ = clusters(seed=4)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    x, y = clusters()
    frame = pandas.DataFrame(x, columns=list("abcde"))
    model = FewShotClassifier().fit(frame, pandas.Series(y))
    assert model.feature_names_in_.tolist() == list("abcde")
    assert (model.predict(frame) == y).all()
    texts = pandas.DataFrame({"text": WORDS})
    assert FewShotClassifier(encoder=letters).fit(texts, pandas.Series(KINDS)).kind_ == "text"
    assert FewShotClassifier(encoder=letters).fit(texts["text"], KINDS).predict(texts).tolist() == KINDS


def test_data_frames_of_polars() -> None:
    polars = pytest.importorskip("polars", reason="needs the package polars")
    x, y = clusters()
    frame = polars.DataFrame({name: x[:, i] for i, name in enumerate("abcde")})
    model = FewShotClassifier().fit(frame, polars.Series(y))
    assert model.feature_names_in_.tolist() == list("abcde")
    assert (model.predict(frame) == y).all()
    texts = polars.DataFrame({"text": WORDS})
    assert FewShotClassifier(encoder=letters).fit(texts, polars.Series(KINDS)).kind_ == "text"
    assert FewShotClassifier(encoder=letters).fit(texts["text"], KINDS).predict(texts).tolist() == KINDS
    with pytest.raises(UserError, match=r"got a LazyFrame; pass what its collect\(\) gives"):
        FewShotClassifier().fit(frame.lazy(), y)


def test_a_column_that_only_knows_to_list_holds_texts() -> None:
    class Column:
        """As polars has it: no tolist."""

        def __len__(self) -> int:
            return len(WORDS)

        def __iter__(self) -> Iterator[str]:
            return iter(WORDS)

        def to_list(self) -> list[str]:
            return list(WORDS)

    model = FewShotClassifier(encoder=letters).fit(Column(), KINDS)
    assert model.kind_ == "text"
    assert model.predict(Column()).tolist() == KINDS


def test_a_frame_that_is_not_read_yet_is_refused() -> None:
    class Lazy:
        def collect(self) -> None: ...

    with pytest.raises(UserError, match=r"expected examples in memory, got a Lazy; pass what its collect\(\) gives"):
        FewShotClassifier().fit(Lazy(), [0, 1])


def test_pictures_by_a_function_have_thumbnails(tmp_path: Path) -> None:
    from PIL import Image

    colours = {"red": (200, 30, 30), "blue": (30, 30, 200)}
    paths, y = [], []
    for name, colour in colours.items():
        for i in range(3):
            path = tmp_path / f"{name}{i}.png"
            Image.new("RGB", (200, 100), tuple(c + 5 * i for c in colour)).save(path)
            paths.append(path)
            y.append(name)

    def mean_colour(batch: Any) -> np.ndarray:
        pictures = [e if isinstance(e, Image.Image) else Image.open(e) for e in batch]
        return np.array([np.asarray(p.convert("RGB")).mean((0, 1)) for p in pictures])

    model = FewShotClassifier(encoder=mean_colour).fit(paths, y)
    assert model.kind_ == "image"
    assert model.predict([str(paths[0]), paths[5]]).tolist() == ["red", "blue"]
    assert model.predict([Image.new("RGB", (9, 9), (180, 40, 20))]).tolist() == ["red"]
    assert all(isinstance(t, bytes) and t[:2] == b"\xff\xd8" for t in model.thumbnails_)
    assert model.names_[0] == str(paths[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        "cosine",
        "prototypes",
        "ridge",
        "logistic",
    ],
)
def test_adding_to_77_classes_takes_less_than_50_ms(head: str) -> None:
    g = torch.Generator().manual_seed(0)
    y = np.repeat(np.arange(77), 10)
    x = (torch.randn(770, 384, generator=g) + 3 * torch.randn(77, 384, generator=g)[y]).numpy()
    model = FewShotClassifier(encoder="vector:identity", head=head).fit(x, y)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for i in range(5):
            # Of this process on one thread, so that a busy machine does not count.
            start = time.process_time()
            model.add_class(100 + i, x[:10] + 1)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.05, seconds


def test_two_shots_of_each_class_tell_strangers() -> None:
    """Leaving one of every two out at once would leave no width to measure strangers, or probabilities, by."""
    x, y = clusters(10, 2, dim=16)
    model = FewShotClassifier(head="prototypes", unknown_rate=0.1).fit(x, y)
    new, truth = clusters(10, 20, dim=16, seed=1)
    far = np.random.default_rng(5).normal(size=(50, 16)) * 20
    assert (model.predict(far) == -1).mean() > 0.9
    assert (model.predict(new) == -1).mean() < 0.5
    p = model.predict_proba(new)[np.arange(len(truth)), truth]
    assert -np.log(np.maximum(p, 1e-30)).mean() < 1.0


def test_calibrating_after_classes_were_added() -> None:
    x, y = clusters(8, 8)
    two = y < 2
    model = FewShotClassifier(head="ridge", kind="vector").fit(x[two], y[two])
    for label in range(2, 8):
        model.add_class(label, x[y == label])
    stale = model.fit_.reference
    model.calibrate()
    anew = FewShotClassifier(head="ridge", kind="vector").fit(x, y)
    assert len(model.fit_.reference) == 64 > len(stale)
    torch.testing.assert_close(model.fit_.reference, anew.fit_.reference)
    if model.fit_.head.strength == anew.fit_.head.strength:
        assert model.fit_.temperature == pytest.approx(anew.fit_.temperature, rel=1e-3)


@pytest.mark.parametrize("missing", [float("nan"), None, 3])
def test_a_missing_label_or_a_number_among_texts_is_refused(missing: Any) -> None:
    labels = ["a", "a", "a", "b", "b", missing]
    with pytest.raises((UserError, ValueError), match=r"NaN|a label for each|one type"):
        FewShotClassifier().fit(clusters(2, 3)[0], labels)


def test_columns_of_vectors() -> None:
    pd = pytest.importorskip("pandas", reason="needs pandas")
    x, y = clusters()
    column = pd.Series(list(x), index=range(7, 7 + len(x)))
    model = FewShotClassifier().fit(column, y)
    np.testing.assert_array_equal(model.predict(column), FewShotClassifier().fit(x, y).predict(x))
