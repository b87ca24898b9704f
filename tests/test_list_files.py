from __future__ import annotations

from pathlib import Path

import pytest

from csg_ray.data.list_files import check_listed, parse_labelled, read_list
from made_data import refusal


def _list(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_lines_are_stripped_and_empty_ones_skipped(tmp_path: Path) -> None:
    assert read_list(_list(tmp_path, "b/1.png \r\n\n   \na/\u00fc 2.png\n")) == [
        "b/1.png",
        "a/\u00fc 2.png",
    ]


def test_the_number_is_behind_the_last_space(tmp_path: Path) -> None:
    path = _list(tmp_path, "a/1.png 0\na dog/2 3.png 11\nb/3.png  4\n")
    assert parse_labelled(path, 12) == [("a/1.png", 0), ("a dog/2 3.png", 11), ("b/3.png", 4)]


@pytest.mark.parametrize(
    "line", ["a/2.png", "a/2.png 12", "a/2.png -1", "a/2.png 1.0", "a/2.png\t1", "a/2.png \u0663x"]
)
def test_an_entry_without_a_class_number_is_named(tmp_path: Path, line: str) -> None:
    path = _list(tmp_path, f"a/1.png 3\n\n{line}\n")
    said = refusal(lambda: parse_labelled(path, 12))
    assert said.startswith(f"{path}, entry 2: '{line}' must be a path and a class number from 0 to")


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\x00", None])
def test_an_unusable_list_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refusal(lambda: read_list(path))


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: read_list(tmp_path))


def test_files_in_any_depth_are_found(tmp_path: Path) -> None:
    names = ["top.png", "a/1.png", "a/2.png", "a/b/c/3.png"]
    check_listed(_touch(tmp_path, *names), names, tmp_path / "list.txt")


@pytest.mark.parametrize("missing", ["a/3.png", "top.png", "nowhere/1.png", "a/1.png/2.png"])
def test_the_first_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    _touch(tmp_path, "a/1.png", "a/2.png")
    said = refusal(
        lambda: check_listed(tmp_path, ["a/1.png", missing, "z.png"], Path("some/list.txt"))
    )
    assert said.startswith("some/list.txt names files that do not exist, 2 in all")
    assert str(tmp_path / missing) in said


def test_a_folder_is_no_listed_file(tmp_path: Path) -> None:
    _touch(tmp_path, "a/b/1.png")
    assert str(tmp_path / "a/b") in refusal(
        lambda: check_listed(tmp_path, ["a/b/1.png", "a/b"], Path("list.txt"))
    )


def test_a_file_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "a/3.png", "a/2.png", "a/1.png", "a/3.png"]
    said = refusal(lambda: check_listed(_touch(tmp_path, *names), names, Path("list.txt")))
    assert said == "list.txt names a/1.png twice; remove one of the lines"


def test_a_long_list_whose_last_line_stands_twice_is_refused_at_once() -> None:
    names = [f"{number}.png" for number in range(150_000)]
    said = refusal(lambda: check_listed(Path(), [*names, names[-1]], Path("list.txt")))
    assert "149999.png twice" in said
