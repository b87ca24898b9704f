"""Rendered glyphs, kept for all processes of a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from csg_ray.data.digits import rendered
from csg_ray.data.digits.glyphs import TRAIN_FAMILIES, VAL_FAMILIES, render_glyphs
from csg_ray.data.digits.rendered import rendered_glyphs

ARGUMENTS = ("source_train", TRAIN_FAMILIES, 3, 20)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CSG_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is rendered, by the names of the splits."""
    names: list[str] = []

    def render(name: str, *rest: object) -> object:
        names.append(name)
        return render_glyphs(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rendered, "render_glyphs", render)
    return names


def _assert_right() -> None:
    images, labels = rendered_glyphs(*ARGUMENTS)
    expected_images, expected_labels = render_glyphs(*ARGUMENTS)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert (images.dtype, labels.dtype) == (expected_images.dtype, expected_labels.dtype)


def test_glyphs_are_rendered_once_and_then_mapped(renderings: list[str], folder: Path) -> None:
    for _ in range(3):
        _assert_right()
    assert renderings == ["source_train"]
    assert [path.suffix for path in folder.iterdir() if path.suffix != ".lock"] == [".glyphs"]
    images, _ = rendered_glyphs(*ARGUMENTS)
    assert isinstance(images.base, np.memmap)
    images[:] = 0  # the process's own copy
    _assert_right()


def test_other_settings_are_other_glyphs(renderings: list[str]) -> None:
    _assert_right()
    for changed in (
        ("source_val", TRAIN_FAMILIES, 3, 20),
        ("source_train", VAL_FAMILIES, 3, 20),
        ("source_train", TRAIN_FAMILIES, 4, 20),
        ("source_train", TRAIN_FAMILIES, 3, 21),
    ):
        found, _ = rendered_glyphs(*changed)
        np.testing.assert_array_equal(found, render_glyphs(*changed)[0])
    assert len(renderings) == 5


@pytest.mark.parametrize("version", ["matplotlib.__version__", "np.__version__"])
def test_another_version_renders_anew(
    version: str, renderings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _assert_right()
    monkeypatch.setattr(f"csg_ray.data.digits.rendered.{version}", "0")
    _assert_right()
    assert len(renderings) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:500] + b"x" + content[501:],
        lambda content: b"x" + content[1:],
    ],
)
def test_a_damaged_file_is_rendered_anew(
    damage: Callable[[bytes], bytes], renderings: list[str], folder: Path
) -> None:
    _assert_right()
    (path,) = folder.glob("*.glyphs")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    _assert_right()
    assert len(renderings) == 2
    assert path.read_bytes() == whole


def test_without_a_folder_every_process_renders(renderings: list[str], folder: Path) -> None:
    folder.write_text("a file")
    _assert_right()
    _assert_right()
    assert len(renderings) == 2
