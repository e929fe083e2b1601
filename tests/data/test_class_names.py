"""Names of classes in a text file: which are taken as they are, and which are refused."""

import pytest
from hypothesis import given
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


def test_names_that_a_person_takes_for_the_same_are_found():
    assert alike(["cat", "dog", "Cat", "caf\u00e9", "cafe\u0301"]) == [
        "'cat' and 'Cat'",
        "'caf\u00e9' and 'cafe\u0301'",
    ]
    assert alike(["a", "b", "a b"]) == []
