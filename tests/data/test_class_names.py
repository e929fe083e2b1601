"""Names of classes in a text file: which are taken as they are, and which are refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_overlock.data.class_names import alike, check_class_names, read_class_names
from lightning_overlock.errors import InputError, printable


def written(folder, content):
    path = folder / "classes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "null\n3e8\n[b] x\n",
        "null\r\n3e8\r\n[b] x\r\n\r\n",
        "\ufeffnull\n3e8\n[b] x",
        " null \n\t3e8\n[b] x  \n\n\n",
    ],
)
def test_line_ends_a_mark_and_blanks_do_not_matter(tmp_path, content):
    assert read_class_names(written(tmp_path, content)) == ["null", "3e8", "[b] x"]


NAME = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=200
).map(str.strip)


@given(st.lists(NAME.filter(bool), min_size=1, max_size=6, unique=True))
def test_names_of_any_script_are_read_as_they_were_written(tmp_path_factory, names):
    path = written(tmp_path_factory.mktemp("names"), "\n".join(names))
    if names[0].startswith("\ufeff"):
        return  # the mark that says the file is in UTF-8
    # Numbers and marks of lists at the beginning of every line are refused, see below.
    assume(len(names) == 1 or any(name[0].isalpha() for name in names[1:]))
    assert read_class_names(path) == names
    check_class_names(names, "a list")
    assert all(printable(name) == name for name in names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sky\n\nland\n", r"line 2 of 3 is empty"),
        ("\nsky\nland\n", r"line 1 of 3 is empty"),
        ("", "found no names"),
        ("\n \n", "found no names"),
        ("sky\nsea\nsky\n", r"the name 'sky' of class 2 is that of class 0, too"),
        ("sky\nse\u2028a\n", r"the name 'se\\u2028a' of class 1 has a line break"),
        ("sky\nse\x1b[1ma\n", r"class 1 has a line break, another control character"),
        ("sky\nsea\n".encode("utf-16"), r"cannot be read .*\n.*UTF-8"),
        ("caf\u00e9\n".encode("latin-1"), r"cannot be read .*\n.*UTF-8"),
    ],
)
def test_what_could_be_misread_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_class_names(written(tmp_path, content))
    assert len(str(caught.value).splitlines()) <= 3
    assert "classes.txt" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "0 ground\n1 sky\n",
        "1 ground\n2 sky\n",
        "1: ground\n0: sky\n",
        "0,ground\n1,sky\n",
        "0) ground\n1) sky\n",
        "0\u00a0ground\n1\u00a0sky\n",
        "7 road\n8 side walk\n11 wall",
        "id,name\n0,ground\n1,sky\n",
        "Index name\n10 ground\n2 sky\n",
        "ground,0,0,0\nsky,70,130,180\n",
        "ground; 0\nsky; 1\n",
        "ground|1\nsky|2\n",
        "- ground\n- sky\n",
        '"ground",\n"sky"\n',
        "'ground'\n'sky'\n",
        '[\n"ground",\n"sky"\n]\n',
    ],
)
def test_more_than_names_is_no_part_of_them(tmp_path, content):
    with pytest.raises(InputError, match=r"classes\.txt: every line ") as caught:
        read_class_names(written(tmp_path, content))
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert "expected nothing but the name of a class per line" in message
    assert "as a list in data.class_names" in message


@pytest.mark.parametrize("suffix", ["json", "yaml", "YML"])
def test_files_for_programs_are_no_list_of_lines(tmp_path, suffix):
    path = tmp_path / f"classes.{suffix}"
    path.write_text('["ground", "sky"]')
    with pytest.raises(InputError, match=rf"classes\.{suffix}: a file for programs"):
        read_class_names(path)


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "2"],
        ["3d print", "2d print"],
        ["1 cent", "1 euro"],
        ["1 cent", "two euro"],
        ["1.5 l", "2.5 l"],
        ["2-door", "4-door"],
        ["1st", "2nd"],
        ["24/7", "7/11"],
        ["class 0", "class 1"],
        ["bed, double", "bed, single"],
        ["[b] x", "null"],
        ['"quoted"', "not"],
        ["- dash", "not"],
        ["label"],
        ["0 alone"],
    ],
)
def test_digits_and_marks_within_names_are_names(tmp_path, names):
    assert read_class_names(written(tmp_path, "\n".join(names))) == names


def test_names_that_a_person_takes_for_the_same_are_found():
    assert alike(["cat", "dog", "Cat", "caf\u00e9", "cafe\u0301"]) == [
        "'cat' and 'Cat'",
        "'caf\u00e9' and 'cafe\u0301'",
    ]
    assert alike(["a", "b", "a b"]) == []
