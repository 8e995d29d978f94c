"""The names of classes as annotation tools write them: each goes to its own value, and nothing ever shifts."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.errors import DataError
from emaseg.starter.class_files import Entry, Names, _entries, distinct, read_lines
from emaseg.starter.names import find_names

Row = tuple[str, int | None, tuple[int, int, int] | None]


def read(folder: Path, file: str, text: str) -> Names | None:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(text, encoding="utf-8")
    names, _ = find_names(folder, coloured=False)
    (folder / file).unlink()
    return names


def rows(names: Names | None) -> list[Row]:
    return [] if names is None else [(entry.name, entry.value, entry.colour) for entry in names.entries]


PLAIN = [("bg", None, None), ("car", None, None)]
VALUES = [("bg", 0, None), ("car", 1, None)]
COLOURS = [("bg", None, (0, 0, 0)), ("car", None, (255, 0, 0))]
BOTH = [("bg", 0, (0, 0, 0)), ("car", 1, (255, 0, 0))]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("classes.txt", "bg\ncar\n", PLAIN),
        ("classes.txt", "\ufeff'bg'\r\n\r\n'car'\r\n", PLAIN),
        ("classes.txt", "name\nbg\ncar", PLAIN),
        ("classes.txt", "# all of them\nbg\ncar", PLAIN),
        ("classes.txt", "0: bg\n1: car", VALUES),
        ("classes.txt", "1 car\n0 bg", VALUES[::-1]),
        ("classes.txt", "bg = 0\ncar = 1", VALUES),
        ("labels.txt", "id name\n0 bg\n1 car", VALUES),
        ("classes.txt", "0 0 0\tbg\n255 0 0\tcar", COLOURS),
        ("classes.txt", "bg 0 0 0\ncar 255 0 0", COLOURS),
        ("classes.txt", "#000000 bg\n#FF0000 car", COLOURS),
        ("classes.txt", "[0, 0, 0] bg\n[255, 0, 0] car", COLOURS),
        ("classes.txt", "0 bg 0 0 0\n1 car 255 0 0", BOTH),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbg:0,0,0::\ncar:255,0,0::", COLOURS),
        ("classes.txt", "0. bg\n1. car", VALUES),
        ("classes.txt", "(0) bg\n(1) car", VALUES),
        ("classes.txt", "0 - bg\n1 - car", VALUES),
        ("classes.txt", "bg -> 0\ncar -> 1", VALUES),
        ("classes.txt", "bg (0)\ncar (1)", VALUES),
        ("classes.txt", "| id | name |\n|----|:----|\n| 0 | bg |\n| 1 | car |", VALUES),
        ("classes.txt", "0 bg  # what is left\n1 car // vehicles", VALUES),
        ("classes.txt", "bg, car", PLAIN),
        ("classes.txt", "['bg', 'car']", PLAIN),
        ("classes.txt", "{0: 'bg',\n 1: 'car'}", VALUES),
        ("palette.json", '{"bg": [0, 0, 0], "car": [255, 0, 0]}', COLOURS),
        ("_classes.csv", "Pixel Value, Class\n0, bg\n1, car", VALUES),
        ("classes.csv", "class,name\n0,bg\n1,car", VALUES),
        ("classes.csv", "name,id\nbg,0\ncar,1", VALUES),
        ("classes.csv", "label;name\n0;bg\n1;car", VALUES),
        ("class_dict.csv", "name,r,g,b\nbg,0,0,0\ncar,255,0,0", COLOURS),
        ("classes.csv", "id,name,colour,notes\n0,bg,#000000,x\n1,car,#ff0000,y", BOTH),
        ("classes.json", '["bg", "car"]', PLAIN),
        ("id2label.json", '{"0": "bg", "1": "car"}', VALUES),
        ("label_map.json", '{"bg": 0, "car": 1}', VALUES),
        ("classes.json", '{"categories": [{"id": 0, "name": "bg"}, {"id": 1, "name": "car"}]}', VALUES),
        (
            "meta.json",
            '{"classes": [{"title": "bg", "color": "#000000"}, {"title": "car", "color": "#FF0000"}]}',
            COLOURS,
        ),
        ("data.yaml", "train: images\nnc: 2\nnames: ['bg', \"car\"]  # two\n", PLAIN),
        ("data.yaml", "names: [\n  bg,\n  car\n]\nnc: 2", PLAIN),
        ("data.yaml", "names:\n- bg\n- car  # the second\nnc: 2", PLAIN),
        ("data.yaml", "names:\n  0: bg\n\n  # a comment\n  1: car\nnc: 2", VALUES),
        ("dataset.yml", "names: {0: bg, 1: 'car'}", VALUES),
        ("data.yaml", "names: [\n  bg,\n  car,\n]", PLAIN),
        ("data.yaml", "names: {'0'  : bg, 1 : car ,}", VALUES),
    ],
)
def test_the_forms_of_annotation_tools(file: str, text: str, expected: list[Row], tmp_path: Path) -> None:
    """Protects each form that is read: a heading or a comment is no class, values and colours are kept."""
    assert rows(read(tmp_path, file, text)) == expected


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("classes.txt", "0: bg\ncar\n2: bus", "classes.txt:2: 'car' is not value and name"),
        ("classes.txt", "bg\ncar\n2: bus", "classes.txt:3: '2: bus' reads as value and name"),
        ("classes.txt", "bg\n***", "'***' is no name of a class"),
        ("classes.txt", "bg\nbus\n1. car", "'1. car' reads as value and name"),
        ("classes.txt", "bg\n#car\nbus", "classes.txt:2: a comment among the names"),
        ("classes.txt", "1: car\n1: bus", 'value 1 is both "car" and "bus"'),
        ("classes.txt", "bg 0 0 0\ncar 300 0 0", "[300, 0, 0] is no colour"),
        ("classes.txt", "0: bg\n99999: car", "99999 is no mask value"),
        ("classes.csv", "id,name\n0,bg\n,car", "classes.csv:3: no number in the column 'id'"),
        ("classes.csv", "id,name\n0,bg\n1,car,red", "classes.csv:3: 3 columns, but the heading has 2"),
        ("classes.csv", "bg,stuff\ncar,thing", "columns without a heading"),
        ("classes.json", '{"bg": 0, "car": "x"}', "entry 2 of the class names is unlike the others"),
        ("classes.json", "{", "not JSON"),
        ("classes.json", "[" * 100_000, "not JSON"),
        ("data.yaml", "names: &all\n- bg", "data.yaml:1: these class names are not in the part of YAML"),
        ("data.yaml", "names:\n- bg\n  car", "data.yaml:3: these class names"),
        ("data.yaml", "names:\n  0: bg\n  0: car", "data.yaml:3: these class names"),
        ("data.yaml", 'names: ["a\\n", b]', "data.yaml:1: these class names"),
        ("data.yaml", "names:\n\t- bg", "data.yaml:2: these class names"),
        ("data.yaml", "names: coco.names", "data.yaml:1: these class names"),
        ("data.yaml", "names: [bg, , car]", "data.yaml:1: these class names"),
        ("data.yaml", "names: [bg, 'car]", "data.yaml:1: these class names"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_line(file: str, text: str, words: str, tmp_path: Path) -> None:
    """Protects from the guess that made every later class another one: a line that does not fit is never a name."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, file, text)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("a.jpg\nb.jpg\n", "", "\n", "\n".join(f"n{i}" for i in range(300))),
        "a.jpg 1\nb.jpg 0\n",  # a label for each image
        "image,label\na.png,1\nb.png,1\nc.png,0\n",
        "id,label\na,crack\nb,spall\nc,crack\n",
        "\n".join(f"{i}: image{i}" for i in range(200_000)),
    ],
)
def test_what_is_no_list_of_classes_is_passed_over_and_said_so(text: str, tmp_path: Path) -> None:
    """Protects a list of images called labels.txt from becoming classes."""
    (tmp_path / "labels.txt").write_text(text)
    names, remarks = find_names(tmp_path, coloured=False)
    assert names is None
    assert remarks == ("labels.txt names no classes that can be used here.",)


@pytest.mark.parametrize(
    "text",
    [
        "0" + "\t" * 8000 + "x\n1 b\n",
        "0" + " " * 8000 + "road" + "\t" * 8000 + "x\n1 b\n",
        "0" + " ," * 400 + "x\n1 b\n",
        "x" * 200_000 + "," + "y" * 10,
        ",".join(["x" * 501, "y"]),
    ],
)
def test_long_lines_are_no_names_and_take_no_time(text: str, tmp_path: Path) -> None:
    """Protects from a line that holds the program for half an hour, and from a column that the csv module refuses: the file
    is passed over, as every other that names no classes."""
    (tmp_path / "labels.txt").write_text(text)
    start = time.process_time()
    assert find_names(tmp_path, coloured=False) == (None, ("labels.txt names no classes that can be used here.",))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "line",
    [
        *("," * 499, "x" * 499, "x:" * 249, "a," * 249, "1," * 249, "0" + ",=;:" * 120, "x" + ",=;:" * 120 + "x"),
        *("0" + "," * 490 + "x", "0,x" + "," * 240 + "1" + "," * 240, "1,1,1" + "," * 490, ",=" * 240 + "#ff00"),
    ],
)
def test_lines_of_one_mark_take_no_time(line: str, tmp_path: Path) -> None:
    """Protects from a small file of commas that holds the program for hours: no way to share them out is tried twice."""
    (tmp_path / "classes.txt").write_text("\n".join([line] * 300 + ["#"]))
    start = time.process_time()
    with contextlib.suppress(DataError):
        find_names(tmp_path, coloured=False)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        *("names: [" + " " * 5000 + "']", "names: [" + " " * 300_000 + "']", "names: [" + "'a" * 100_001 + "]"),
        *("names: [\n" + "a,\n" * 100_000, "names: {a" + " " * 100_000 + "b}", "names: {a" + " " * 100_000 + ":}"),
        *("names:\n  a" + " " * 100_000 + "b", "names:\n" + "  a" + " :" * 50_000, "names: [a" + "a'" * 100_000),
        *("names:\n-" + " " * 100_000 + "a:", "x\n" * 500_000, "names: " + "a" * 300_000 + ": b"),
    ],
)
def test_brackets_and_blanks_of_yaml_take_no_time(text: str, tmp_path: Path) -> None:
    """Protects from a data.yaml of a few kilobytes that holds init and convert for ever; and what is said of it is short."""
    (tmp_path / "data.yaml").write_text(text)
    start = time.process_time()
    try:
        find_names(tmp_path, coloured=False)
    except DataError as error:
        assert len(error.message) < 500 + len(str(tmp_path))  # noqa: PT017
    assert time.process_time() - start < 5


@pytest.mark.parametrize("file", ["names.json", "classes.txt", "names.yaml"])
def test_very_many_equal_names_are_passed_over(file: str, tmp_path: Path) -> None:
    """Protects from a number behind each of them, found by trying all before it."""
    names = json.dumps(["a"] * 100_000)
    (tmp_path / file).write_text(f"names: {names}" if file.endswith("yaml") else names)
    start = time.process_time()
    assert find_names(tmp_path, coloured=False) == (None, (f"{file} names no classes that can be used here.",))
    assert time.process_time() - start < 5


def test_equal_names_get_the_next_free_number() -> None:
    """Protects the names of classes from being shared, also with one that is called like a numbered one."""
    entries = [Entry(name) for name in ("a", "b", "a_2", "a", "a", "b", "a_2")]
    assert [entry.name for entry in distinct(Path("x"), entries)] == ["a", "b", "a_2", "a_3", "a_4", "b_2", "a_2_2"]
    start = time.process_time()
    assert distinct(Path("x"), [Entry("a", value) for value in range(60_000)])[-1].name == "a_60000"
    assert time.process_time() - start < 5


def test_files_larger_than_any_list_of_names_are_not_read(tmp_path: Path) -> None:
    """Protects the memory, and the minutes that such a file takes; COCO's file of annotations is read all the same."""
    for file in ("classes.txt", "data.yaml", "labels.json"):
        with (tmp_path / file).open("wb") as content:
            content.truncate(65 << 20)
    names, remarks = find_names(tmp_path, coloured=False)
    assert (names, len(remarks)) == (None, 3)
    coco = {"categories": [{"id": 1, "name": "car"}], "annotations": ["x" * (5 << 20)]}
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    assert rows(find_names(tmp_path, coloured=False)[0]) == [("car", 1, None)]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("7: 3D print 1 2 3", ("3D print", 7, (1, 2, 3))),
        ("7 = car,, 1 2 3", ("car", 7, (1, 2, 3))),
        ("7 , , 1 2 3", ("class", 7, (1, 2, 3))),
        ("7: 1 2 3", ("7", None, (1, 2, 3))),
        ("a, 3rd car: 1,2;3", ("a, 3rd car", None, (1, 2, 3))),
        (",,1 2 3", ("class", None, (1, 2, 3))),
        ("7 = 3D print,#010203", ("3D print", 7, (1, 2, 3))),
        ("7,,,#010203", ("class", 7, (1, 2, 3))),
        ("a = b: #010203", ("a = b", None, (1, 2, 3))),
        ("7 #010203", ("7", None, (1, 2, 3))),
        ("a b:1,2,3::", ("a b", None, (1, 2, 3))),
    ],
)
def test_what_separators_belong_to(line: str, row: Row) -> None:
    """Protects values, names and colours where several separators stand beside each other, or a name is missing."""
    (entry,) = _entries(Path("classes.txt"), [(1, line)])
    assert (entry.name, entry.value, entry.colour) == row


def test_runs_of_blanks_are_one(tmp_path: Path) -> None:
    """Protects columns that were drawn up with blanks, however many, from a time that grows with their third power."""
    blanks = " " * 150
    text = f"0{blanks}bg{blanks}0 0 0\n1{blanks}car{blanks}\t255 0 0\n"
    start = time.process_time()
    assert rows(read(tmp_path, "classes.txt", text)) == BOTH
    assert time.process_time() - start < 1


def test_all_names_in_one_line_may_be_many(tmp_path: Path) -> None:
    names = [f"a name of some length, number {place}".replace(",", "") for place in range(200)]
    assert [name for name, _, _ in rows(read(tmp_path, "classes.txt", ", ".join(names)))] == names


def test_values_behind_a_blank(tmp_path: Path) -> None:
    """Protects each name's value where it stands behind a blank; and names that end in a number, which is no value."""
    found = read(tmp_path, "classes.txt", "car 1\nroad sign 2\nbackground 0\n")
    assert rows(found) == [("car", 1, None), ("road sign", 2, None), ("background", 0, None)]
    for names in (["stage 1", "stage 0"], ["grade 1", "grade 2"], ["car 1", "road 3"], ["zone 1", "area 0", "bus"]):
        found = read(tmp_path, "classes.txt", "\n".join(names))
        assert rows(found) == [(name, None, None) for name in names]


def test_numbers_of_supervisely_records_are_no_values(tmp_path: Path) -> None:
    """Protects init beside a meta.json, whose ids are numbers of Supervisely's own records."""
    classes = [{"title": name, "color": "#FF0000", "id": 9_021_321 + i} for i, name in enumerate(("bg", "car"))]
    found = read(tmp_path, "meta.json", json.dumps({"classes": classes, "tags": []}))
    assert [(name, value) for name, value, _ in rows(found)] == [("bg", None), ("car", None)]


def test_text_of_windows_is_read(tmp_path: Path) -> None:
    """Protects what Windows writes as "Unicode": UTF-16 with its mark, no column of nulls."""
    (tmp_path / "classes.txt").write_bytes("\ufeff0: bg\r\n1: car\r\n".encode("utf-16-le"))
    assert rows(find_names(tmp_path, coloured=False)[0]) == VALUES


def test_a_file_that_may_hold_the_names_is_named(tmp_path: Path) -> None:
    """Protects from class_0, class_1 without a word where the names lie in a file that is called otherwise."""
    for file in ("label_map.pbtxt", "README.md", "train.txt"):
        (tmp_path / file).write_text("bg\ncar")
    names, remarks = find_names(tmp_path, coloured=False)
    assert names is None
    assert remarks == ("No class names were looked for in label_map.pbtxt: a file of them is called classes.txt.",)


def test_copies_in_the_splits(tmp_path: Path) -> None:
    """Protects Roboflow's file in each split: alike they are one, and different ones are refused."""
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, bg\n1, car")
    folders = (tmp_path / "train", tmp_path / "valid")
    names, _ = find_names(tmp_path, folders, coloured=False)
    assert names is not None
    assert (names.file, rows(names)) == ("train/_classes.csv", VALUES)
    (tmp_path / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, car\n1, bg")
    with pytest.raises(DataError, match="name the classes differently"):
        find_names(tmp_path, folders, coloured=False)


WORDS = st.text("abcdefghijklmnop", min_size=2, max_size=6)
NAMES = st.lists(st.one_of(WORDS, st.tuples(WORDS, WORDS).map(" ".join)), min_size=2, max_size=6, unique=True)
TABLES = {
    "classes.txt": [
        lambda v, n, c: f"{v}: {n}",
        lambda v, n, c: f"{n},{v}",
        lambda v, n, c: f"{v} {n}",
        lambda v, n, c: f"{v},{n},{c[0]},{c[1]},{c[2]}",
        lambda v, n, c: f"{v} {c[0]} {c[1]} {c[2]} {n}",
    ],
    "data.yaml": [lambda v, n, c: f"  {v}: {n}", lambda v, n, c: f"  {n}: {v}"],
}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), names=NAMES)
def test_a_stated_value_is_never_another(
    data: st.DataObject, names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: whatever the form, each name keeps the value that stands beside it, in any order and with gaps."""
    values = data.draw(st.lists(st.integers(0, 300), min_size=len(names), max_size=len(names), unique=True))
    file = data.draw(st.sampled_from(sorted(TABLES)))
    form = data.draw(st.sampled_from(TABLES[file]))
    lines = [form(v, n, (v % 256, 7, 9)) for v, n in zip(values, names, strict=True)]
    text = "\n".join(["names:"] * (file == "data.yaml") + lines)
    found = read(tmp_path_factory.mktemp("n"), file, text)
    assert found is not None
    assert {value: entry.name for value, entry in found.by_value().items()} == dict(zip(values, names, strict=True))


@settings(max_examples=40, deadline=None)
@given(names=NAMES.filter(lambda names: "name" not in names), data=st.data())
def test_a_line_of_another_form_is_never_read_as_a_position(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: one line in another form than the rest is an error, wherever it stands."""
    odd = data.draw(st.integers(0, len(names) - 1))
    plain = data.draw(st.booleans())
    lines = [name if (place == odd) == plain else f"{place}: {name}" for place, name in enumerate(names)]
    with pytest.raises(DataError, match="so the values of the classes are unclear"):
        read(tmp_path_factory.mktemp("n"), "classes.txt", "\n".join(lines))


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.text("names: -[]{}'\"#,01ab\n\t", max_size=60)))
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Law: no class file ends in anything but names or a DataError."""
    folder = tmp_path_factory.mktemp("n")
    for file in ("classes.txt", "classes.csv", "data.yaml", "classes.json"):
        content = json.dumps(text) if file.endswith("json") else text
        try:
            (folder / file).write_text(content, encoding="utf-8", newline="")
        except UnicodeEncodeError:
            return
        with contextlib.suppress(DataError):
            find_names(folder, coloured=True)
        (folder / file).unlink()


def test_a_table_may_have_long_remarks(tmp_path: Path) -> None:
    """Protects the values of a table with descriptions: the words of its heading say which columns count."""
    (tmp_path / "classes.csv").write_text(f"name,value,description\nroad,1,{'long ' * 300}\ncar,2,short\n")
    found = read_lines(tmp_path / "classes.csv")
    assert found is not None
    assert [(entry.value, entry.name) for entry in found.entries] == [(1, "road"), (2, "car")]
