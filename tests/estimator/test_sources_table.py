"""CSV, TSV, JSON-lines and text files: what is found, what was guessed, and what is wrong, by row and column."""

import csv
import io
import json
import math
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.core import UserError
from kshot.estimator.sources import Source, read_inputs, read_training

HEADER = "text,label\n"


@pytest.fixture
def save(tmp_path: Path):
    def write(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def pairs(source: Source) -> list[tuple]:
    return list(zip(source.examples, source.labels or [], source.names, strict=True))


def test_texts_and_labels(save) -> None:
    source = read_training(save('Text, Label \n"Hello, ""you""",greeting\n"two\nlines", bye \n  kept  ,bye\n'))
    assert (source.kind, source.columns, source.label_column) == ("text", ("Text",), "Label")
    assert pairs(source) == [
        ('Hello, "you"', "greeting", "row 2"),
        ("two\nlines", "bye", "row 3"),
        ("  kept  ", "bye", "row 4"),
    ]
    assert source.notes == []


@pytest.mark.parametrize("text", ["text", "Sentence", "question", "UTTERANCE", "query", "message"])
@pytest.mark.parametrize("label", ["label", "Category", "class", "intent", "target"])
def test_common_names_of_columns_are_known(save, text: str, label: str) -> None:
    source = read_training(save(f"{label},{text}\na,x\nb,y\n"))
    assert (source.examples, source.labels) == (["x", "y"], ["a", "b"])


def test_columns_can_be_named_and_others_are_noted(save) -> None:
    path = save("text,body,kind,label\na,x,1,l\nb,y,2,m\n")
    source = read_training(path, text_column="body", label_column="kind")
    assert (source.examples, source.labels) == (["x", "y"], ["1", "2"])
    assert source.notes == ["columns left out: text, label"]
    with pytest.raises(UserError, match=r"text column 'nody' in .*, got the columns text, body, kind, label"):
        read_training(path, text_column="nody")
    with pytest.raises(UserError, match="label column 'nind'"):
        read_training(path, label_column="nind")
    with pytest.raises(UserError, match="got 'label' for both"):
        read_training(path, text_column="label")


def test_columns_of_numbers_that_are_named_are_taken_beside_texts(save) -> None:
    text = "price,size,message,label\n1,2,hello,a\n3,4,bye,b\n"
    assert read_training(save(text)).kind == "text"
    named = read_training(save(text), columns=("price", "size"))
    assert (named.kind, named.columns) == ("table", ("price", "size"))


def test_a_single_column_beside_the_labels_is_taken_and_said(save) -> None:
    source = read_training(save("review,label\ngood,1\nbad,0\n"))
    assert (source.kind, source.columns, source.labels) == ("text", ("review",), ["1", "0"])
    assert source.notes == ["column 'review' is taken for the texts"]
    assert read_training(save("structure,label\nCCO,1\nCC,0\n"), kind="molecule").kind == "molecule"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,labels\na,b\n",
            r"column of labels in .*, got the columns text, labels; rename one, or name it with --label",
        ),
        (
            "title,body,label\na,x,1\nb,y,2\n",
            r"a column of texts .* which no numbers: title \(row 2: 'a'\); body \(row 2",
        ),
        ("text,label\n", "nothing below the header"),
        ("text,label\na,1\nb,1\n", r"at least two classes in .*, got one class only \(1\)"),
        ("", "got the empty file"),
        (" \n\n", "got the empty file"),
        (",,\n,,\n", "expected a header"),
        (",,\n", "expected a header"),
        ("text,text,label\na,b,1\n", "columns of different names in .*, got text twice"),
        ('text,label\n"a,1\nb,2\n', r"quotation marks in pairs in .*, got a cell in row 2 \(line 2\)"),
        ('text,label\nx,1\n"a"b,2\n', r"quotation marks in pairs in .*, got a cell in row 3 \(line 3\)"),
        (b"text,label\na\0b,1\n", "got a NUL byte in .* at byte 12 in line 2"),
        (b"PK\x03\x04\0\0\0\0", "NUL byte .* if it is a spreadsheet, save it as CSV"),
        ("label\na\nb\n", r"numbers in all columns but that of labels in .*, got the columns label"),
    ],
)
def test_files_that_cannot_be_used(save, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_training(save(content))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.xlsx", "save the sheet as CSV"),
        ("a.zip", "unpack it"),
        ("a.json", "name it .jsonl"),
        ("a.txt", "two columns, text and label"),
        ("a.parquet", "convert it"),
        ("a", "rename it"),
    ],
)
def test_other_files_are_refused_with_advice(save, name: str, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        read_training(save("x", name))


def test_bad_rows_are_listed_and_left_out_only_if_asked(save) -> None:
    content = HEADER + "a,1\n   ,1\nb\nc,2\nd,2,3\ne,  \n,1\n"
    path = save(content)
    with pytest.raises(UserError, match="5 bad examples") as caught:
        read_training(path)
    message = str(caught.value)
    assert "empty cell in column 'text' (row 3, row 8)" in message
    assert "2 cells expected, as in the header, got 1 (row 4)" in message
    assert "2 cells expected, as in the header, got 3 (row 6)" in message
    assert "empty label (row 7)" in message
    assert "--skip-bad" in message
    source = read_training(path, skip_bad=True)
    assert pairs(source) == [("a", "1", "row 2"), ("c", "2", "row 5")]
    assert [name for name, _ in source.skipped] == ["row 3", "row 4", "row 6", "row 7", "row 8"]
    with pytest.raises(UserError, match=r"none is good \(row 2: empty cell"):
        read_training(save(HEADER + ",1\n,2\n"), skip_bad=True)


def test_rows_without_any_number_teach_nothing(save) -> None:
    """Not a hole here and there, which the median fills."""
    path = save("x,y,label\n1,2,a\n,,a\n3,,b\nNA,nan,b\n4,5,b\n2,1,a\n")
    with pytest.raises(UserError, match=r"got 2 bad examples: no value in any numeric column \(row 3, row 5\)"):
        read_training(path)
    source = read_training(path, skip_bad=True)
    assert source.labels == ["a", "b", "b", "a"]
    assert [name for name, _ in source.skipped] == ["row 3", "row 5"]
    one = save("x,label\n1,a\n,a\n3,b\n2,b\n1.5,a\n")
    with pytest.raises(UserError, match=r"no value in a numeric column \(row 3\)"):
        read_training(one, columns=["x"])


def test_many_bad_rows_make_a_short_message(save) -> None:
    with pytest.raises(UserError, match=r"empty cell in column 'text' \(row 2, .* and 990 more\)") as caught:
        read_training(save(HEADER + ",1\n" * 1000))
    assert len(str(caught.value)) < 500


def test_blank_rows_are_left_out_and_counted(save) -> None:
    source = read_training(save("\n" + HEADER + "a,1\n\n,\nb,2\n\n"))
    assert source.names == ["row 3", "row 6"]
    assert source.notes == ["3 blank rows of data.csv are left out"]


@pytest.mark.parametrize(
    ("encoding", "mark", "note"),
    [
        ("utf-8", b"", None),
        ("utf-8", b"\xef\xbb\xbf", "UTF-8 with a byte order mark"),
        ("utf-16-le", b"\xff\xfe", "UTF-16"),
        ("utf-16-be", b"\xfe\xff", "UTF-16"),
        ("utf-32-le", b"\xff\xfe\0\0", "UTF-32"),
        ("utf-16-le", b"", "UTF-16 without a mark"),
        ("utf-16-be", b"", "UTF-16 without a mark"),
        ("cp1252", b"", r"not UTF-8 \(byte 14 \(0xe9\) in line 2\) and was read as Latin-1"),
    ],
)
def test_encodings_are_found_and_said(save, encoding: str, mark: bytes, note: str | None) -> None:
    source = read_training(save(mark + (HEADER + "café,1\n“naïve”,2\n").encode(encoding)))
    assert source.examples == ["café", "“naïve”"]
    assert source.columns == ("text",)
    if note is None:
        assert source.notes == []
    else:
        (said,) = source.notes
        assert re.search(note, said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\n\x81,1\n", r"UTF-8, UTF-16 or Latin-1, got byte 11 \(0x81\) in line 2"),
        (
            b"\xef\xbb\xbftext,label\ncaf\xe9,1\n\xc3\xa9,2\n",
            r"UTF-8 with a byte order mark, got byte 17 \(0xe9\) in line 2",
        ),
        (b"\xff\xfe" + "text,label\na,1\n".encode("utf-16-le") + b"\x00", r"to be UTF-16, got byte 32 \(0x00\)"),
        (b"\xff\xfe" + b"\x00\xd8a\0", r"to be UTF-16, got byte 2 "),
    ],
)
def test_bytes_that_are_no_text_are_named(save, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_training(save(content))


def test_mixed_encodings_are_refused_or_their_rows_left_out(save) -> None:
    path = save("text,label\nnaïve,1\nplain,2\n".encode() + "café,2\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"UTF-8 in parts but not at byte 31 \(0xe9\) in line 4"):
        read_training(path)
    source = read_training(path, skip_bad=True)
    assert source.examples == ["naïve", "plain"]
    assert source.skipped[0].name == "row 4"
    assert "mixes encodings" in source.notes[0]


def test_separators_are_found_and_said(save) -> None:
    for separator, name in ((";", "';'"), ("\t", "tabs"), ("|", "'|'")):
        source = read_training(save(f'"text"{separator}label\n"a{separator}, b"{separator}1\nc,2,3{separator}2\n'))
        assert source.examples == [f"a{separator}, b", "c,2,3"]
        assert source.notes == [f"cells of data.csv are separated by {name}"]


def test_tsv_with_quotation_marks_that_do_not_pair_up(save) -> None:
    source = read_training(save('text\tlabel\n"Hello" he said\t1\n5" nail\t2\n', "data.tsv"))
    assert source.examples == ['"Hello" he said', '5" nail']
    assert source.notes == ["quotation marks in data.tsv are taken as they stand, since they do not pair up"]
    assert read_training(save('text\tlabel\n"a\tb"\t1\nc\t2\n', "data.tab")).examples == ["a\tb", "c"]


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_ten_megabytes_in_one_cell(save, name: str) -> None:
    long = "word, " * 1_750_000
    path = save(f'{HEADER}"{long}",1\nb,2\n' if name == "data.csv" else _lines([long, "1"], ["b", "2"]), name)
    before = csv.field_size_limit()
    source = read_training(path)
    assert len(source.examples[0]) == 10_500_000
    assert csv.field_size_limit() == before


def test_the_limit_of_cells_is_put_back_after_errors_and_between_threads(save) -> None:
    before = csv.field_size_limit()
    good, bad = save(HEADER + "a,1\nb,2\n" * 2000), save(HEADER + '"a', "bad.csv")

    def work() -> None:
        for _ in range(5):
            read_training(good)
            with pytest.raises(UserError):
                read_training(bad)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert csv.field_size_limit() == before


def _lines(*rows: list) -> str:
    return "".join(
        json.dumps(dict(zip(["text", "label"], row, strict=True)), ensure_ascii=False) + "\n" for row in rows
    )


def test_json_lines(save) -> None:
    content = '{"label": 3, "text": "a\\nb"}\n\n{"text": "line\u2028end", "label": true, "extra": [1]}\r\n'
    source = read_training(save(content, "data.jsonl"))
    assert pairs(source) == [("a\nb", "3", "line 1"), ("line\u2028end", "True", "line 3")]
    assert source.notes == ["columns left out: extra"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "a", "label": 1', r"broken JSON at column \d+ .* \(line 2\)"),
        ('["a", 1]', r"got list .* \(line 2\)"),
        ('{"text": "a", "text": "b", "label": 1}', r"a name twice \(line 2\)"),
        ("[" * 100_000, r"\(line 2\)"),
        ('{"text": 5, "label": 1}', r"column 'text': text expected, got 5 \(line 2\)"),
        ('{"text": null, "label": 1}', r"empty cell in column 'text' \(line 2\)"),
        ('{"label": 1}', r"empty cell in column 'text' \(line 2\)"),
        ('{"text": "a"}', r"empty label \(line 2\)"),
        ('{"text": "a", "label": {}}', r"text expected as label, got {} \(line 2\)"),
        ('{"text": "\\ud800", "label": 1}', r"characters that are no text .* \(line 2\)"),
        ('{"text": "a\\u0000", "label": 1}', r"NUL\) \(line 2\)"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", r"\(line 2\)"),
    ],
)
def test_bad_lines_of_json_are_named(save, line: str, why: str) -> None:
    path = save(f'{{"text": "x", "label": 0}}\n{line}\n{{"text": "y", "label": 1}}\n', "data.ndjson")
    with pytest.raises(UserError, match=why):
        read_training(path)
    source = read_training(path, skip_bad=True)
    assert source.examples == ["x", "y"]
    assert [name for name, _ in source.skipped] == ["line 2"]


def test_no_json_at_all(save) -> None:
    with pytest.raises(UserError, match=r"a JSON object in every line of .*, got none; line 1: .* broken JSON"):
        read_training(save("text,label\n", "data.jsonl"))


def test_the_same_text_under_two_labels_is_noted_or_refused(save) -> None:
    path = save(HEADER + "a,1\na,2\nb,1\na,1\nb,1\n")
    assert read_training(path).notes == ["the same example under two labels: row 2 (1) and row 3 (2)"]
    with pytest.raises(UserError, match=r"row 2 \(1\) and row 3 \(2\); keep one of each"):
        read_training(path, strict=True)
    path = save(HEADER + "".join(f"{i},1\n{i},2\n" for i in range(8)))
    assert len(notes := read_training(path, text_column="text").notes) == 6
    assert notes[-1] == "and 3 more under two labels"


def test_numbers(save) -> None:
    source = read_training(save("id,a,b,class,\n7,1,,x,0\n8, 2.5e1 ,NA,y,1\n9,-3,4,x,2\n"))
    assert (source.kind, source.columns, source.label_column) == ("table", ("a", "b"), "class")
    assert [row[0] for row in source.examples] == [1.0, 25.0, -3.0]
    assert [math.isnan(row[1]) for row in source.examples] == [True, True, False]
    assert source.labels == ["x", "y", "x"]
    assert source.notes == ["columns left out: id, (no name)"]
    chosen = read_training(save("id,a,b,class\n7,1,2,x\n8,2,3,y\n"), columns=["b", "id"])
    assert (chosen.columns, chosen.examples) == (("b", "id"), [(2.0, 7.0), (3.0, 8.0)])


@pytest.mark.parametrize("cell", ["oops", "inf", "1e999", "1_0", "0x1", "1,5"])
def test_what_is_no_number_is_named(save, cell: str) -> None:
    path = save(f'a,b,label\n1,2,x\n2,"{cell}",y\n3,4,y\n')
    with pytest.raises(UserError, match=f"column 'b': a finite number expected, got '{cell}' \\(row 3\\)"):
        read_training(path)
    assert len(read_training(path, skip_bad=True)) == 2


def test_numbers_with_a_decimal_comma(save) -> None:
    source = read_training(save("a;b;label\n1,5;2;x\n-0,25;3.5;y\n"))
    assert source.examples == [(1.5, 2.0), (-0.25, 3.5)]


def test_numbers_of_json(save) -> None:
    content = (
        '{"a": 1, "b": null, "label": "x"}\n{"a": 2.5, "b": true, "label": "y"}\n{"a": NaN, "b": 0, "label": "y"}\n'
    )
    source = read_training(save(content, "data.jsonl"))
    assert source.kind == "table"
    assert str(source.examples) == "[(1.0, nan), (2.5, 1.0), (nan, 0.0)]"
    for bad in ("[1]", "Infinity", "1" + "0" * 400):
        with pytest.raises(UserError, match=r"a finite number expected, got .* \(line 4\)"):
            read_training(save(content + f'{{"a": {bad}, "label": "x"}}\n', "data.jsonl"))


def test_rows_of_numbers_under_two_labels_even_with_gaps(save) -> None:
    path = save("a,b,label\n1,,x\n1,nan,y\n2,2,x\n")
    assert read_training(path).notes == ["the same example under two labels: row 2 (x) and row 3 (y)"]


def test_smiles(save) -> None:
    pytest.importorskip("rdkit", reason="needs the package rdkit: pip install 'kshot[molecules]'")
    path = save("mol_id,SMILES,text,label\n1,CCO,x,a\n2,C1CC,y,b\n3,CC,z,b\n")
    source = read_training(path)
    assert (source.kind, source.columns, len(source)) == ("molecule", ("SMILES",), 3)
    assert read_training(path, kind="text").examples == ["x", "y", "z"]
    assert read_training(path, text_column="SMILES").kind == "molecule"
    source = read_training(path, skip_bad=True)
    assert source.examples == ["CCO", "CC"]
    assert source.skipped[0].name == "row 3"
    assert "RDKit can read" in source.skipped[0].why


def test_inputs_need_no_labels(save) -> None:
    source = read_inputs(save("id,question\n1,why\n2,how\n"))
    assert (source.kind, source.examples, source.labels, source.names) == (
        "text",
        ["why", "how"],
        None,
        ["row 2", "row 3"],
    )
    path = save("question,label\nwhy,a\nhow,b\n")
    assert read_inputs(path).labels is None
    assert read_inputs(path, label_column="label").labels == ["a", "b"]
    with pytest.raises(UserError, match="label column 'truth'"):
        read_inputs(path, label_column="truth")
    with pytest.raises(UserError, match=r"1 bad example: empty cell"):
        read_inputs(save("text,n\n,1\n"))


def test_inputs_follow_the_columns_of_the_model(save) -> None:
    path = save("extra,b,label,a\nx,2,l,1\ny,4,m,3\n")
    source = read_inputs(path, kind="table", columns=("a", "b"))
    assert source.examples == [(1.0, 2.0), (3.0, 4.0)]
    with pytest.raises(UserError, match=r"expected the columns a, c in .*, got the columns extra, b, label, a; add c"):
        read_inputs(path, kind="table", columns=("a", "c"))
    assert read_inputs(path, kind="text", columns=("extra",)).examples == ["x", "y"]
    assert read_inputs(save("text\nx\n"), kind="text", columns=("body",)).examples == ["x"]


def test_a_file_of_one_column_may_have_no_header(save) -> None:
    with pytest.raises(UserError, match=r"got the columns How are you\?; rename one, .* save the lines as a .txt file"):
        read_inputs(save("How are you?\nFine.\n"), kind="text")


def test_lines_of_text(save) -> None:
    source = read_inputs(save("one, two\r\n\r\n  three\rfour \u2028 still four\n", "new.txt"))
    assert (source.kind, source.examples) == ("text", ["one, two", "three", "four \u2028 still four"])
    assert source.names == ["line 1", "line 3", "line 4"]
    assert read_inputs(save("CCO\nCC\n", "new.txt"), kind="molecule").kind == "molecule"
    source = read_inputs(save("CCO ethanol\nCC\tethane\n", "new.smi"))
    assert (source.kind, source.examples) == ("molecule", ["CCO", "CC"])
    with pytest.raises(UserError, match="got the empty file"):
        read_inputs(save("\n\n", "new.txt"))
    with pytest.raises(UserError, match=r"convert it|two columns"):
        read_inputs(save("1 2\n", "new.txt"), kind="table")


def test_several_files(save) -> None:
    a, b = save("text\nx\n", "a.csv"), save("y\n\nz\n", "b.txt")
    source = read_inputs([a, b])
    assert source.examples == ["x", "y", "z"]
    assert source.names == [f"{a}: row 2", f"{b}: line 1", f"{b}: line 3"]
    numbers = save("u,v\n1,2\n", "c.csv")
    with pytest.raises(UserError, match="expected files of one form"):
        read_inputs([a, numbers])
    with pytest.raises(UserError, match="expected files of one form"):
        read_inputs([numbers, save("v,u\n1,2\n", "d.csv")])
    labelled = [save("text,label\nx,1\n", "e.csv"), save("message,label\ny,2\n", "f.csv")]
    assert read_inputs(labelled, label_column="label").labels == ["1", "2"]


def test_what_was_left_out_of_several_files_is_named_by_file(save) -> None:
    a, b = save("text,n\nx,1\n,2\n", "a.csv"), save("text,n\ny,1\n,2\n", "b.csv")
    source = read_inputs([a, b], skip_bad=True)
    assert [name for name, _ in source.skipped] == [f"{a}: row 3", f"{b}: row 3"]


# Any text that a cell can hold: no NUL, no halves of characters, and something in it.
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).filter(str.strip)


@given(
    st.lists(st.tuples(cells, st.sampled_from("ab")), min_size=1, max_size=12),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_is_read(tmp_path_factory, rows, separator, end, quoting, encoding) -> None:
    rows = [*rows, ("first", "a"), ("second", "b")]
    made = io.StringIO(newline="")
    writer = csv.writer(made, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    path.write_bytes(made.getvalue().encode(encoding))
    source = read_training(path)
    assert list(zip(source.examples, source.labels or [], strict=True)) == rows


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=12))
def test_what_was_written_as_json_is_read(tmp_path_factory, rows) -> None:
    rows = [*rows, ("first", "a"), ("second", "b")]
    path = tmp_path_factory.mktemp("json") / "data.jsonl"
    path.write_text(_lines(*map(list, rows)), encoding="utf-8", newline="")
    source = read_training(path)
    assert source.examples == [text for text, _ in rows]
    assert source.labels == [label.strip() for _, label in rows]


@given(
    st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=3, max_size=3), min_size=2, max_size=9)
)
def test_numbers_are_read_to_the_last_bit(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("numbers") / "data.csv"
    lines = [",".join([*("" if math.isnan(v) else repr(v) for v in row), "ab"[i % 2]]) for i, row in enumerate(rows)]
    path.write_text("\n".join(["x,y,z,label", *lines]), encoding="utf-8")
    source = read_training(path)
    assert repr(source.examples) == repr([tuple(row) for row in rows])


@given(st.binary(max_size=60), st.sampled_from([".csv", ".tsv", ".jsonl", ".txt"]), st.booleans())
def test_no_bytes_do_more_than_raise_a_user_error(tmp_path_factory, data, suffix, skip_bad) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"data{suffix}"
    path.write_bytes(b"text,label\nx,1\n" + data if skip_bad else data)
    for read in (read_training, read_inputs):
        try:
            source = read(path, skip_bad=skip_bad)
        except UserError as error:
            message = str(error)
        else:
            message = "expected"
            assert len(source.examples) == len(source.names) > 0
        assert message.startswith("expected")


@pytest.mark.needs_data
def test_banking77(data_root: Path) -> None:
    path = data_root / "text" / "banking77" / "train.csv"
    if not path.exists():
        pytest.skip("no banking77 in KSHOT_DATA")
    source = read_training(path)
    assert (len(source), len(set(source.labels or [])), source.skipped) == (10_003, 77, [])
    assert source.examples[0] == "I am still waiting on my card?"
