"""`csg-ray pack`, and the look at all files before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.cli.preparing import prepare_data
from csg_ray.config.data import ImageFolderConfig
from csg_ray.config.reader import dump_yaml
from csg_ray.data.load import list_files, load_splits
from made_data import PACS_LIKE, make_image_folder, refusal

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Source and target in the working directory."""
    make_image_folder(tmp_path / "source", PACS_LIKE)
    make_image_folder(tmp_path / "target", PACS_LIKE, seed=5000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])
    load_splits.cache_clear()
    return tmp_path


def _settings(**changes: Any) -> dict[str, Any]:
    folders = {"name": "image_folder", "source": "source", "target": "target", "cache": "cache"}
    return folders | changes


def _write(**changes: Any) -> str:
    Path("run.yaml").write_text(dump_yaml({"data": _settings(**changes)}))
    return "run.yaml"


def _config(**changes: Any) -> ImageFolderConfig:
    return ImageFolderConfig(**_settings(**changes))


def test_pack_decodes_every_split_once(capsys: Capture) -> None:
    path = _write()
    sizes = {name: len(split) for name, split in list_files(_config()).splits.items()}
    assert main(["pack", path]) == 0
    out = capsys.readouterr().out
    for name, size in sizes.items():
        assert f"{name:>12}  {size} images, " in out
        assert f"decoding {name}: {size}/{size} images" in out
    caches = sorted(Path("cache").glob("*.arrow"))
    assert len(caches) == 4
    times = [cache.stat().st_mtime_ns for cache in caches]
    assert main(["pack", path]) == 0
    again = capsys.readouterr().out
    assert "decoding" not in again
    assert [cache.stat().st_mtime_ns for cache in caches] == times
    assert all(str(cache) in again for cache in caches)


def test_pack_names_what_it_leaves_out(capsys: Capture) -> None:
    files = list_files(_config()).splits["source_train"].files
    path = files.root / files.images[3]
    path.write_bytes(b"no image")
    assert main(["pack", _write(max_unreadable=0.1)]) == 0
    out = capsys.readouterr().out
    assert f"{len(files) - 1} images, 1 left out, " in out
    assert f"{path} is no image" in out


def test_pack_has_nothing_to_do_without_a_cache(capsys: Capture) -> None:
    assert main(["pack", _write(cache="off")]) == 2
    said = capsys.readouterr().err
    assert "data.cache is off; name a folder, or set it to auto" in said
    Path("digits.yaml").write_text(dump_yaml({"data": {"name": "digits"}}))
    assert main(["pack", "digits.yaml"]) == 2
    assert "data.name digits is made on the spot; nothing to pack" in capsys.readouterr().err


def test_what_is_wrong_with_the_files_shows_before_anything_starts() -> None:
    (Path("target") / "horse").rename("horse")
    said = refusal(lambda: prepare_data(_config()))
    assert said.startswith("data.source and data.target must hold the same classes")
    assert not Path("cache").exists()


def test_preparing_decodes_all_but_the_sealed_split(capsys: Capture) -> None:
    prepare_data(_config())
    assert len(list(Path("cache").glob("*.arrow"))) == 3
    assert "target_test" not in capsys.readouterr().err
