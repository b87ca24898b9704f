"""`pack`, and the images that other commands look at and decode before they start."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.cli.preparing import PackingDisplay, prepare_data, prepare_study, searched_data
from csg_ray.cli.searching import data_lines
from csg_ray.config.data import DigitsConfig, ImageFolderConfig
from csg_ray.config.load import config_to_mapping, override_config
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig
from csg_ray.data import load as data_load
from csg_ray.data.packed import check_folder
from csg_ray.search_space import SearchSpace, parse_search_space
from made_data import PACS_LIKE, make_image_folder, refusal

Capture = pytest.CaptureFixture[str]
SIZES = {"source_train": 37, "source_val": 4, "target_val": 20, "target_test": 21}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trees of class folders in an empty folder."""
    make_image_folder(tmp_path / "sketch", PACS_LIKE)
    make_image_folder(tmp_path / "photo", PACS_LIKE, seed=9000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])
    data_load.load_splits.cache_clear()
    return tmp_path


def base(**data: Any) -> dict[str, Any]:
    settings = {"name": "image_folder", "source": "sketch", "target": "photo", "cache": "cache"}
    return {f"data.{name}": value for name, value in (settings | data).items()}


def space_of(space: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "study": "pets",
        "base": base(**data),
        "space": {"method.temperature": {"loguniform": [0.02, 0.5]}} | space,
        "search": {"metric": "target_val/mean_class_accuracy", "mode": "max"},
    }


def write_space(space: dict[str, Any], **data: Any) -> Path:
    Path("pets.yaml").write_text(yaml.safe_dump(space_of(space, **data)))
    return Path("pets.yaml")


def caches() -> list[Path]:
    return sorted(Path("cache").glob("*.arrow"))


# pack


def test_pack_decodes_every_split_of_a_search_space_once(capsys: Capture) -> None:
    file = write_space({})

    assert main(["pack", str(file)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [f"decoding {name}: {n}/{n} images" for name, n in SIZES.items()]
    assert [line.split()[:3] for line in lines[4:]] == [
        [name, str(count), "images,"] for name, count in SIZES.items()
    ]
    assert [line.split()[-1] for line in lines[4:]] == [
        next(str(path) for path in caches() if path.name in line) for line in lines[4:]
    ]
    assert len(caches()) == 4

    assert main(["pack", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == lines[4:]  # nothing is left to decode


def test_pack_takes_a_run_config_and_changed_settings(capsys: Capture) -> None:
    config = override_config(RunConfig(), base(cache="elsewhere"))
    Path("run.yaml").write_text(dump_yaml(config_to_mapping(config)))

    assert main(["pack", "run.yaml", "--set", "data.cache=cache"]) == 0

    assert len(caches()) == 4
    assert not Path("elsewhere").exists()


def test_pack_decodes_all_that_a_search_may_draw() -> None:
    file = write_space({"data.max_side": {"choice": [8, 9]}})

    assert main(["pack", str(file)]) == 0

    assert len(caches()) == 8


def test_pack_names_what_it_leaves_out(capsys: Capture) -> None:
    (Path("sketch") / "guitar" / "guitar_001.png").write_bytes(b"no image")
    file = write_space({}, max_unreadable=0.5)

    assert main(["pack", str(file)]) == 0

    out = capsys.readouterr().out
    assert "36 images, 1 left out" in out or "3 images, 1 left out" in out
    assert "left out  guitar/guitar_001.png is no image" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "data.cache=off"], "data.cache is off; name a folder, or set it to auto"),
        (["--set", "data.source=nowhere"], "the folder nowhere does not exist"),
        (["--set", "data.sauce=sketch"], "unknown setting 'data.sauce'"),
        (["--set", "data.cache=pets.yaml/x"], "data.cache pets.yaml/x cannot be made, since "),
        (["--set", "data.max_unreadable=0"], "cannot be read (guitar/guitar_001.png is no image)"),
    ],
)
def test_pack_refuses_in_one_sentence_and_leaves_no_file(
    words: list[str], sentence: str, capsys: Capture
) -> None:
    (Path("photo") / "guitar" / "guitar_001.png").write_bytes(b"no image")
    file = write_space({})

    assert main(["pack", str(file), *words]) == 2

    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    left = [path.name for path in Path().rglob("*.tmp")]
    assert not left


def test_pack_has_nothing_to_do_for_what_is_made_on_the_spot(capsys: Capture) -> None:
    space = {"study": "d", "space": {"method.temperature": {"uniform": [0.1, 0.5]}}}
    search = {"search": {"metric": "target_val/hse", "mode": "min"}}
    Path("d.yaml").write_text(yaml.safe_dump(space | search))

    assert main(["pack", "d.yaml"]) == 2

    assert "data.name digits is made on the spot; nothing to pack" in capsys.readouterr().err


def test_a_folder_that_refuses_is_named_with_its_setting() -> None:
    # A file system in which nobody makes files, whoever asks.
    sentence = refusal(lambda: check_folder(Path("/proc/csg_ray")))
    assert sentence.startswith("data.cache: /proc cannot be written to: ")
    assert sentence.endswith("; name another folder, or set it to off")


# before a search


def parsed(space: dict[str, Any], **data: Any) -> SearchSpace:
    return parse_search_space(space_of(space, **data))


def test_the_first_point_comes_first_and_no_data_twice() -> None:
    mapping = space_of(
        {"data.max_side": {"choice": [8, 9]}, "train.batch_size": {"choice": [8, 16]}}
    )
    point = {"method.temperature": 0.1, "data.max_side": 9, "train.batch_size": 8}
    space = parse_search_space(mapping | {"points_to_evaluate": [point]})

    found = searched_data(space)

    assert [config.max_side for config in found if isinstance(config, ImageFolderConfig)] == [9, 8]


def test_data_that_a_branch_draws_count() -> None:
    branches: dict[str, Any] = {
        "csg": {"space": {"data.max_side": {"choice": [8, 9]}}},
        "vanilla": {"space": {}},
    }
    mapping = space_of({"method.name": {"choice": branches}})
    del mapping["space"]["method.temperature"]
    mapping["space"]["train.learning_rate"] = {"uniform": [0.1, 0.2]}

    found = searched_data(parse_search_space(mapping))

    sides = {config.max_side for config in found if isinstance(config, ImageFolderConfig)}
    assert sides == {None, 8, 9}


def test_what_only_some_trials_would_meet_is_found_before_the_first() -> None:
    mapping = space_of({"data.source": {"choice": ["sketch", "nowhere"]}})
    del mapping["base"]["data.source"]
    space = parse_search_space(mapping)

    assert "the folder nowhere does not exist" in refusal(lambda: prepare_study(space))


def test_preparing_decodes_all_but_the_sealed_split_and_says_so_once(capsys: Capture) -> None:
    config = parsed({}).first_config().data

    prepare_data(config)
    prepare_data(config)

    sizes = [(name, count) for name, count in SIZES.items() if name != "target_test"]
    assert capsys.readouterr().out.splitlines() == [
        f"decoding {name}: {count}/{count} images" for name, count in sizes
    ]
    assert len(caches()) == 3


def test_preparing_names_what_is_left_out(capsys: Capture) -> None:
    for number in range(1, 6):
        (Path("photo") / "guitar" / f"guitar_{number:03d}.png").write_bytes(b"no image")
    config = parsed({}, max_unreadable=0.5, target_val_share=0.7).first_config().data

    prepare_data(config)

    (note,) = [line for line in capsys.readouterr().out.splitlines() if "note" in line]
    assert re.fullmatch(
        r"note: \d images of target_val cannot be read and are left out "
        r"\((guitar/guitar_00\d\.png is no image, ){3}\.\.\.\)",
        note,
    )


def test_in_a_pipe_a_split_has_ten_lines_at_most(capsys: Capture) -> None:
    with PackingDisplay() as display:
        for done in range(7, 1000, 7):
            display.show("source_train", done, 999)
        display.show("source_train", 999, 999)
        display.show("source_val", 1, 1)

    lines = capsys.readouterr().out.splitlines()
    counts = [int(line.split()[2].partition("/")[0]) for line in lines[:-1]]
    # The first that reach each tenth.
    assert counts == [
        min(n for n in [*range(7, 1000, 7), 999] if 10 * n >= k * 999) for k in range(1, 11)
    ]
    assert lines[-1] == "decoding source_val: 1/1 images"


# check


def test_check_says_what_the_images_are_and_what_decoding_takes() -> None:
    config = parsed({}).first_config().data
    sizes = ", ".join(f"{count} {name}" for name, count in SIZES.items())
    data, cache = data_lines(config)
    assert data == ("data", f"image_folder, 3 classes: {sizes} images")
    assert cache[1].startswith("about ")
    assert cache[1].endswith(" kB in cache")

    prepare_data(config)
    there = "source_train, source_val, target_val"
    assert data_lines(config)[1][1].endswith(f" kB in cache; decoded already: {there}")

    assert main(["pack", str(write_space({}))]) == 0
    assert data_lines(config)[1] == ("cache", "all decoded, in cache")


def test_check_of_a_task_without_files_or_without_a_cache() -> None:
    assert data_lines(DigitsConfig()) == [("data", "digits")]
    off = parsed({}, cache="off").first_config().data
    assert data_lines(off)[1] == ("cache", "off: every image is decoded whenever it is used")


def test_check_refuses_a_folder_that_cannot_hold_the_cache() -> None:
    config = parsed({}, cache="sketch/dog/dog_001.png/x").first_config().data
    assert "dog_001.png is a file" in refusal(lambda: data_lines(config))
