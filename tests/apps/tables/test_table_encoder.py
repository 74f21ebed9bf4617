"""Quantile scaling: ranks count, units do not; what is missing is told; the state comes back whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kshot.apps.tables import TableEncoder, VectorEncoder
from kshot.core import Encoder, UserError, generator

finite = st.floats(allow_nan=False, allow_infinity=False)
columns = st.lists(finite, min_size=2, max_size=40).filter(lambda values: len({v + 0.0 for v in values}) > 1)


def column(values: list[float]) -> np.ndarray:
    return np.array(values)[:, None]


def normal_score(p: float) -> float:
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))


def test_they_are_encoders() -> None:
    assert isinstance(TableEncoder(), Encoder)
    assert isinstance(VectorEncoder(3), Encoder)
    assert (TableEncoder().kind, TableEncoder().name, TableEncoder().dim) == ("table", "table:quantile", 0)
    assert (VectorEncoder(3).kind, VectorEncoder(3).name, VectorEncoder(3).dim) == ("vector", "vector:identity", 3)


def test_scores_are_those_of_the_middle_of_ranks() -> None:
    encoder = TableEncoder().fit(column([5, 1, 5, 100]))
    found = encoder.encode(column([1, 5, 100]))[:, 0].tolist()
    assert found == pytest.approx([normal_score(p) for p in (1 / 8, 4 / 8, 7 / 8)], abs=1e-6)
    # Between knots in proportion, beyond them as at the end.
    assert encoder.encode(column([3]))[0, 0] == pytest.approx((normal_score(1 / 8) + 0) / 2, abs=1e-6)
    assert encoder.encode(column([-1e9, 1e9]))[:, 0].tolist() == [found[0], found[2]]


@given(columns, st.lists(finite, min_size=2, max_size=40))
def test_scores_never_fall_as_values_grow(fitted: list[float], asked: list[float]) -> None:
    encoder = TableEncoder().fit(column(fitted))
    x = encoder.encode(column(sorted(asked + fitted)))[:, 0]
    assert bool(torch.isfinite(x).all())
    assert bool((x.diff() >= 0).all())
    assert x.abs().max() <= abs(normal_score(1 / (2 * len(fitted)))) + 1e-6


@given(columns)
def test_distinct_values_have_distinct_scores(values: list[float]) -> None:
    x = TableEncoder().fit(column(values)).encode(column(values))[:, 0]
    assert x.unique().numel() == len({v + 0.0 for v in values})


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=60), st.sampled_from(["exp", "cube", "affine"]))
def test_increasing_transforms_change_nothing(values: list[int], transform: str) -> None:
    assume(len(set(values)) > 1)
    rows = column([float(v) for v in values])
    moved = {"exp": np.exp(rows / 100), "cube": rows**3, "affine": 4 * rows - 256}[transform]
    a, b = TableEncoder().fit(rows), TableEncoder().fit(moved)
    assert torch.equal(a.encode(rows), b.encode(moved))
    # With the missing ones too, since the median is a value that occurs.
    gone = np.vstack([rows, [[np.nan]]]), np.vstack([moved, [[np.nan]]])
    a, b = (TableEncoder().fit(g) for g in gone)
    assert torch.equal(a.encode(gone[0]), b.encode(gone[1]))


@given(columns)
def test_turning_the_order_round_turns_the_signs(values: list[float]) -> None:
    rows = column(values)
    up, down = TableEncoder().fit(rows).encode(rows), TableEncoder().fit(-rows).encode(-rows)
    torch.testing.assert_close(up, -down, atol=1e-6, rtol=0)


@given(columns, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values: list[float], random) -> None:
    mixed = list(values)
    random.shuffle(mixed)
    a, b = TableEncoder().fit(column(values)), TableEncoder().fit(column(mixed))
    assert a.fingerprint == b.fingerprint
    assert torch.equal(a.encode(column(values)), b.encode(column(values)))


def test_many_values_become_standard_normal_and_few_knots() -> None:
    x = torch.randn(5000, 2, generator=generator(0, "x"), dtype=torch.float64).exp()
    encoder = TableEncoder().fit(x)
    assert encoder.state["starts"].tolist() == [0, 256, 512]
    z = encoder.encode(x)
    assert z.mean(0).abs().max() < 0.01
    assert (z.std(0) - 1).abs().max() < 0.02
    # The logarithms were normal; the far tails of a sample are not where they should be.
    middle = x.log().abs() < 2
    torch.testing.assert_close(z.double()[middle], x.log()[middle], atol=0.15, rtol=0)


def test_missing_values_get_the_median_and_an_indicator_where_fitting_saw_some() -> None:
    rows = [[1.0, 10.0], [2.0, None], [3.0, 30.0], [4.0, 20.0]]
    encoder = TableEncoder().fit(rows)
    assert encoder.dim == 3
    x = encoder.encode([[2.0, None], [float("nan"), 20.0]])
    assert x[:, 2].tolist() == [1.0, 0.0]
    assert x[0, 1] == x[1, 1] == 0.0
    # The lower median of the first column is 2; fitting saw none missing in it, so that there is no indicator.
    assert x[0, 0] == x[1, 0]


def test_what_fitting_has_not_seen_is_told() -> None:
    nan = float("nan")
    # The first column is whole, of the second one value is missing, the third is dropped.
    encoder = TableEncoder().fit([[1, 10, 7], [3, None, 7], [2, 30, 7]])
    rows = [[1, 30, 7], [0.9, 10, 900], [nan, 31, nan], [2, nan, nan], [nan, nan, 7]]
    found = encoder.unseen(rows)
    no = [False] * 3
    assert found.outside.tolist() == [no, [True, False, False], [False, True, False], no, no]
    assert found.missing.tolist() == [no, no, [True, False, False], no, [True, False, False]]
    assert found.empty.tolist() == [False, False, False, False, True]
    # It is about rows whose vectors do not tell: beyond an end, and at the end.
    assert torch.equal(encoder.encode([[0.9, 10, 7]]), encoder.encode([[1, 10, 7]]))
    with pytest.raises(UserError, match=r"call fit\(rows\)"):
        TableEncoder().unseen(rows)
    with pytest.raises(UserError, match=r"expected 3 numbers in every row, got 1"):
        encoder.unseen([[1]])


@given(columns, st.lists(finite, min_size=1, max_size=10))
def test_what_fitting_saw_is_not_outside(values: list[float], others: list[float]) -> None:
    encoder = TableEncoder(4).fit(column(values))
    assert not encoder.unseen(column(values)).outside.any()
    found = encoder.unseen(column(others)).outside[:, 0].tolist()
    assert found == [not min(values) <= v <= max(values) for v in others]


def test_constant_columns_are_dropped_but_not_their_indicators() -> None:
    nan = float("nan")
    rows = np.array([[7, 1, nan, 5], [7, 2, nan, nan], [7, 3, nan, 5]])
    encoder = TableEncoder().fit(rows)
    x = encoder.encode(rows)
    assert encoder.dim == 2
    assert x[:, 0].tolist() == sorted(x[:, 0].tolist())
    assert x[:, 1].tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(UserError, match="constant columns only"):
        TableEncoder().fit([[1, 2], [1, 2]])
    with pytest.raises(UserError, match="constant columns only"):
        TableEncoder().fit([[0.0], [-0.0]])


def test_the_state_brings_the_encoder_back() -> None:
    rows = torch.randn(30, 4, generator=generator(0, "x")).numpy()
    rows[3, 1] = np.nan
    rows[:, 2] = 1
    encoder = TableEncoder().fit(rows)
    again = TableEncoder.from_settings(encoder.settings(), encoder.tensors())
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(rows), encoder.encode(rows))
    assert TableEncoder().fit(rows[:-1]).fingerprint != encoder.fingerprint
    assert TableEncoder(8).fit(rows).fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.pop("knots"),
        lambda s: s.update(medians=s["medians"].float()),
        lambda s: s.update(knots=s["knots"].flip(0)),
        lambda s: s.update(scores=s["scores"][:-1]),
        lambda s: s.update(starts=s["starts"] + 1),
        lambda s: s.update(starts=s["starts"][:0]),
        lambda s: s["knots"].fill_(float("nan")),
        lambda s: s.update(more=s["knots"]),
    ],
    ids=["absent", "dtype", "order", "short", "shifted", "empty", "nan", "more"],
)
def test_damaged_state_is_refused(damage) -> None:
    encoder = TableEncoder().fit([[1, 2], [3, 5], [2, 9]])
    state = {name: tensor.clone() for name, tensor in encoder.tensors().items()}
    damage(state)
    with pytest.raises(UserError, match="damaged: fit again"):
        TableEncoder.from_settings(encoder.settings(), state)


def test_keys_are_of_the_content() -> None:
    encoder = TableEncoder().fit([[1, 2], [3, 5]])
    assert encoder.key([1, 0.0]) == encoder.key((1.0, -0.0)) == encoder.key(np.array([1, 0]))
    assert encoder.key([1, None]) == encoder.key([1, -float("nan")])
    assert encoder.key([1, 0]) != encoder.key([1, None])
    with pytest.raises(UserError, match=r"expected 2 numbers in every row, got 3"):
        encoder.key([1, 2, 3])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [3]], "expected 2 numbers in every row, got 1 in row 1"),
        ([[1, 2], [3, "x"]], "expected a number in row 1, column 1, got 'x'"),
        ([[1, 2], [3, float("inf")]], "expected finite numbers, got inf in row 1, column 1"),
        ([[1, 2], "ab"], "expected rows of numbers, got 'ab' as row 1"),
        ([1, 2], "expected rows of numbers, got 1 as row 0"),
        ([], "at least one row"),
        (np.zeros(3), r"expected numbers of shape \(N, C\)"),
        ([[10**400]], "expected a number in row 0"),
    ],
)
def test_bad_rows_are_named(rows, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TableEncoder().fit(rows)


def test_encoding_needs_fitting_and_the_fitted_width() -> None:
    with pytest.raises(UserError, match=r"call fit\(rows\)"):
        TableEncoder().encode([[1]])
    encoder = TableEncoder().fit([[1, 2], [3, 5]])
    with pytest.raises(UserError, match=r"expected numbers of shape \(N, 2\)"):
        encoder.encode(np.zeros((4, 3)))
    with pytest.raises(UserError, match="expected finite numbers, got -inf in row 0, column 1"):
        encoder.encode([[1, -float("inf")]])
    assert encoder.encode([]).shape == (0, 2)
    told: list[tuple[int, int]] = []
    encoder.encode([[1, 2]], lambda *at: told.append(at))
    assert told == [(1, 1)]


@pytest.mark.parametrize("n", [1, 0, 1 << 20])
def test_senseless_numbers_of_quantiles_are_refused(n: int) -> None:
    with pytest.raises(UserError, match="expected n_quantiles"):
        TableEncoder(n)


@pytest.mark.parametrize("settings", [{}, {"name": "vector:identity", "n_quantiles": 9, "dim": "3"}])
def test_foreign_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="expected settings of table:quantile"):
        TableEncoder.from_settings(settings, {})
    with pytest.raises(UserError, match="expected settings of vector:identity"):
        VectorEncoder.from_settings(settings)


def test_data_frames_and_tensors_are_rows_too() -> None:
    pandas = pytest.importorskip("pandas", reason="needs the package pandas")
    frame = pandas.DataFrame({"a": [1, 2, 4], "b": [0.5, None, 1.5]})
    odd = pandas.DataFrame({"a": [1, 2, 4], "b": pandas.array([0.5, pandas.NA, 1.5], dtype="object")})
    rows = [[1, 0.5], [2, None], [4, 1.5]]
    wanted = TableEncoder().fit(rows).encode(rows)
    for given_rows in (frame, odd, torch.tensor([[1, 0.5], [2, float("nan")], [4, 1.5]])):
        assert torch.equal(TableEncoder().fit(given_rows).encode(given_rows), wanted)
    assert torch.equal(TableEncoder().fit(rows).encode([torch.tensor(r) for r in ([1, 0.5], [4, 1.5])]), wanted[[0, 2]])


def test_vectors_are_passed_on() -> None:
    encoder = VectorEncoder(3)
    x = torch.randn(5, 3, generator=generator(0, "x"))
    out = encoder.encode(x)
    assert torch.equal(out, x)
    out.zero_()
    assert x.abs().sum() > 0
    assert torch.equal(encoder.encode(list(x.numpy())), x)
    assert torch.equal(encoder.encode(x.double().numpy()), x)
    assert encoder.encode([]).shape == (0, 3)
    assert encoder.key(x[0]) == encoder.key(x[0].tolist()) != encoder.key(x[1])
    assert VectorEncoder.from_settings(encoder.settings(), encoder.tensors()) == encoder
    assert encoder.fingerprint != VectorEncoder(4).fingerprint
    told: list[tuple[int, int]] = []
    encoder.encode(x, lambda *at: told.append(at))
    assert told == [(5, 5)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2, 3], [1, 2]], "expected 3 numbers in every row, got 2 in row 1"),
        ([[1, 2, None]], "got nan in row 0, column 2"),
        ([[1, 2, 1e300]], r"got 1e\+300 in row 0, column 2"),
        (torch.zeros(2, 4), r"expected numbers of shape \(N, 3\), got \(2, 4\)"),
    ],
)
def test_bad_vectors_are_named(rows, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VectorEncoder(3).encode(rows)


def test_a_vector_has_a_length() -> None:
    with pytest.raises(UserError, match="length 1 or more"):
        VectorEncoder(0)
