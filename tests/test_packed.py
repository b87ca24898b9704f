from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from csg_ray.config.errors import UserError
from csg_ray.data import packed
from csg_ray.data.files import FileList, UnreadableImageError
from csg_ray.data.packed import check_room, is_packed, pack, packed_bytes
from csg_ray.data.packed_images import PackedImages
from csg_ray.data.packing import check_limit

# Packs files; logs every read, and hangs where it is told to. It starts on a line of input.
BUILDER = """
import hashlib, os, sys, time
from pathlib import Path
from csg_ray.data.files import FileList
from csg_ray.data.packed import pack

root, folder, log, hang_at, *names = sys.argv[1:]
read = FileList.image

def logged(self, index):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {index}\\n")
    time.sleep(600 if index == int(hang_at) else 0.05)
    return read(self, index)

FileList.image = logged
files = FileList(Path(root), tuple(names))
print("ready", flush=True)
sys.stdin.readline()
packed = pack(files, Path(folder), None, 0.0, lambda done, total: None)
digest = hashlib.sha256()
for position in range(len(packed)):
    digest.update(packed.image(position).tobytes())
print(digest.hexdigest(), flush=True)
"""


class Case(NamedTuple):
    files: FileList
    folder: Path


def ignore(done: int, total: int) -> None:
    pass


def picture(seed: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "RGBA":
        return Image.fromarray(pixels)
    return Image.fromarray(pixels[..., :3]).convert(mode)


def read_ids(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.array(image)
    except OSError:
        raise UnreadableImageError(path, "cannot be read") from None


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Ten images of all kinds and sizes."""
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    names = []
    kinds = "RGB.png P.png L.png RGBA.png 1.png RGB.jpg L.jpg CMYK.jpg RGB.png RGB.png"
    for number, kind in enumerate(kinds.split()):
        mode, ending = kind.split(".")
        names.append(f"a/{number}.{ending}")
        picture(number, 20 + number, 30 - number, mode).save(root / names[-1])
    return Case(FileList(root, tuple(names)), tmp_path / "cache")


@pytest.fixture
def labelled(case: Case) -> Case:
    maps = []
    for number, name in enumerate(case.files.images):
        maps.append(f"label_{number}.png")
        with Image.open(case.files.root / name) as image:
            picture(100 + number, image.height, image.width, "L").save(case.files.root / maps[-1])
    return Case(FileList(case.files.root, case.files.images, tuple(maps), read_ids), case.folder)


def packed_of(case: Case, max_unreadable: float = 0.0) -> PackedImages:
    return pack(case.files, case.folder, None, max_unreadable, ignore)


def left_in(folder: Path) -> list[str]:
    """All but the locks, which stay."""
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


def assert_equals_files(found: PackedImages, files: FileList) -> None:
    assert len(found) == len(files)
    for position in found.kept.tolist():
        # Not the images, as Pillow compares what else the file says, too.
        assert found.image(position).mode == "RGB"
        np.testing.assert_array_equal(found.image(position), files.image(position))
        if files.label_maps:
            labels = np.asarray(Image.open(files.root / files.label_maps[position]))
            np.testing.assert_array_equal(found.label_map(position), labels)


def test_every_image_equals_the_decoded_file(case: Case) -> None:
    found = packed_of(case)
    assert_equals_files(found, case.files)
    assert found.kept.tolist() == list(range(10))
    assert found.left_out == {}


@pytest.mark.parametrize("rows", [1, 3, 5, 10, 11])
def test_batches_of_any_size_hold_the_same(
    labelled: Case, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_ROWS", rows)
    found = packed_of(labelled)
    assert found.rows_per_batch == rows
    assert_equals_files(found, labelled.files)


def test_an_image_can_be_changed_without_changing_the_next_read(case: Case) -> None:
    found = packed_of(case)
    before = found.image(0).tobytes()
    found.image(0).paste((1, 2, 3), (0, 0, 9, 9))
    assert found.image(0).tobytes() == before


def test_label_maps_cannot_be_changed(labelled: Case) -> None:
    assert not packed_of(labelled).label_map(0).flags.writeable


def test_the_second_call_opens_what_the_first_has_built(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_packed(case.files, case.folder, None)
    packed_of(case)
    assert is_packed(case.files, case.folder, None)
    monkeypatch.setattr(packed, "_build", None)
    assert_equals_files(packed_of(case), case.files)


def test_a_copy_reads_in_another_process(case: Case) -> None:
    found = packed_of(case)
    mapped = pickle.dumps(found)
    found.image(3)
    assert pickle.dumps(found) == mapped
    code = (
        "import pickle, sys; found = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(found.image(3).tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=mapped, capture_output=True)
    assert done.stdout == case.files.image(3).tobytes(), done.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of a process with threads
def test_loader_processes_read_from_a_map_that_is_open(case: Case) -> None:
    found = packed_of(case)
    found.image(0)
    loader = DataLoader(
        found.kept.tolist(),
        batch_size=None,
        num_workers=2,
        collate_fn=partial(_bytes_of, found),
        multiprocessing_context="fork",
    )
    assert list(loader) == [case.files.image(position).tobytes() for position in range(10)]


def _bytes_of(found: PackedImages, position: int) -> bytes:
    return found.image(position).tobytes()


@pytest.mark.parametrize("shorter_side", [1, 15, 22, 25, 1000])
def test_larger_images_are_scaled_down_to_the_shorter_side(
    labelled: Case, shorter_side: int
) -> None:
    found = pack(labelled.files, labelled.folder, shorter_side, 0.0, ignore)
    for position in range(10):
        image = labelled.files.image(position)
        labels = Image.fromarray(labelled.files.label_map(position))
        scale = shorter_side / min(image.size)
        if scale < 1:
            # 1e-9: 22 / 22 * 29 and the like, where the product falls short of a whole number.
            size = (int(image.width * scale + 1e-9), int(image.height * scale + 1e-9))
            image = image.resize(size, Image.Resampling.BILINEAR)
            labels = labels.resize(size, Image.Resampling.NEAREST)
        assert min(found.image(position).size) <= shorter_side or scale >= 1
        np.testing.assert_array_equal(found.image(position), image)
        np.testing.assert_array_equal(found.label_map(position), np.asarray(labels))


def test_each_shorter_side_is_a_cache_of_its_own(case: Case) -> None:
    for shorter_side in (None, 10, 11):
        pack(case.files, case.folder, shorter_side, 0.0, ignore)
    assert len(left_in(case.folder)) == 3


def test_progress_counts_up_to_all(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_ROWS", 4)
    seen: list[tuple[int, int]] = []
    pack(case.files, case.folder, None, 0.0, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_the_estimate_is_the_size_of_the_pixels(labelled: Case) -> None:
    files = labelled.files
    pixels = [files.image(position).width * files.image(position).height for position in range(10)]
    assert packed_bytes(files, None) == 4 * sum(pixels)
    images_alone = FileList(files.root, files.images)
    assert packed_bytes(images_alone, None) == 3 * sum(pixels)
    assert packed_bytes(images_alone, 5) < 3 * 10 * 5 * 10
    assert not labelled.folder.exists()


def test_the_estimate_looks_at_500_files_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small.png", "large.png"):
        side = 10 if name == "small.png" else 30
        picture(0, side, side).save(tmp_path / name)
    names = ("small.png",) * 600 + ("large.png",) * 600
    opened: list[Path] = []
    real = Image.open

    def recorded(path: Path) -> Image.Image:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(Image, "open", recorded)
    expected = 600 * 3 * (100 + 900)
    assert packed_bytes(FileList(tmp_path, names), None) == pytest.approx(expected, rel=0.01)
    assert len(opened) == 500


# What a cache is named by.


def test_a_changed_file_makes_a_new_cache(case: Case) -> None:
    packed_of(case)
    picture(77, 20, 30).save(case.files.root / "a/0.png")
    assert_equals_files(packed_of(case), case.files)
    assert len(left_in(case.folder)) == 2


def test_a_touched_label_map_makes_a_new_cache(labelled: Case) -> None:
    packed_of(labelled)
    os.utime(labelled.files.root / labelled.files.label_maps[4], ns=(1, 1))
    assert not is_packed(labelled.files, labelled.folder, None)


def test_another_order_makes_a_new_cache(case: Case) -> None:
    packed_of(case)
    turned = FileList(case.files.root, case.files.images[::-1])
    assert not is_packed(turned, case.folder, None)


def _plus(path: Path, summand: int) -> NDArray[np.uint8]:
    return read_ids(path) + np.uint8(summand)


def test_labels_read_otherwise_make_a_new_cache(labelled: Case) -> None:
    root, images, maps, _ = (
        labelled.files.root,
        labelled.files.images,
        labelled.files.label_maps,
        labelled.files.read_labels,
    )
    packed_of(labelled)
    for summand in (1, 2):
        files = FileList(root, images, maps, partial(_plus, summand=summand))
        assert not is_packed(files, labelled.folder, None)
        found = pack(files, labelled.folder, None, 0.0, ignore)
        np.testing.assert_array_equal(
            found.label_map(0), labelled.files.label_map(0) + np.uint8(summand)
        )
        # The same reader in another process is another object.
        again = FileList(root, images, maps, partial(_plus, summand=summand))
        assert is_packed(again, labelled.folder, None)


def test_the_same_files_elsewhere_need_no_new_cache(case: Case, tmp_path: Path) -> None:
    packed_of(case)
    case.files.root.rename(tmp_path / "moved")
    assert is_packed(FileList(tmp_path / "moved", case.files.images), case.folder, None)


# Files that cannot be read.


def spoil(case: Case, *positions: int) -> None:
    for position in positions:
        path = case.files.root / case.files.images[position]
        path.write_bytes(path.read_bytes()[:60])


def test_unreadable_images_are_named_and_left_out_up_to_the_limit(labelled: Case) -> None:
    spoil(labelled, 2)
    (labelled.files.root / labelled.files.images[5]).unlink()
    found = packed_of(labelled, max_unreadable=0.2)
    assert found.kept.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert list(found.left_out) == [2, 5]
    assert found.left_out[5] == "does not exist"
    assert_equals_files(found, labelled.files)
    # Opened, it is what it was when it was built.
    assert packed_of(labelled, max_unreadable=0.2).left_out == found.left_out


def test_above_the_limit_nothing_is_built(case: Case) -> None:
    spoil(case, 1, 2, 6, 8)
    with pytest.raises(UserError, match=r"4 of the first 10 images in .*data\.max_unreadable 0\.3"):
        packed_of(case, max_unreadable=0.3)
    assert left_in(case.folder) == []
    with pytest.raises(UserError, match=r"a/1\.png .*, a/2\.png .*, a/6\.jpg .*, \.\.\.\)"):
        packed_of(case, max_unreadable=0.3)


def test_building_stops_where_the_limit_is_passed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_ROWS", 2)
    spoil(case, 3, 9)
    seen: list[int] = []
    with pytest.raises(UserError, match="1 of the first 4 images"):
        pack(case.files, case.folder, None, 0.0, lambda done, total: seen.append(done))
    assert seen == [2]


def test_a_cache_built_under_a_higher_limit_does_not_pass_a_lower_one(case: Case) -> None:
    spoil(case, 1, 2)
    packed_of(case, max_unreadable=0.2)
    with pytest.raises(UserError, match="2 of the first 10 images"):
        packed_of(case, max_unreadable=0.1)


@pytest.mark.parametrize(("share", "allowed"), [(0.29, 29), (0.289, 28), (0.0, 0), (0.99, 99)])
def test_the_limit_is_a_share_rounded_down(tmp_path: Path, share: float, allowed: int) -> None:
    files = FileList(tmp_path, tuple(f"{number}.png" for number in range(100)))
    check_limit(files, dict.fromkeys(range(allowed), "is damaged"), share, 100)
    with pytest.raises(UserError):
        check_limit(files, dict.fromkeys(range(allowed + 1), "is damaged"), share, 100)


def test_an_unreadable_label_map_is_never_left_out(labelled: Case) -> None:
    lost = labelled.files.label_maps[4]
    (labelled.files.root / lost).unlink()
    with pytest.raises(UserError, match=f"{lost}, the label map of .*a/4.png, cannot be read"):
        packed_of(labelled, max_unreadable=1.0)
    assert left_in(labelled.folder) == []


def test_a_label_map_of_another_size_is_never_left_out(labelled: Case) -> None:
    picture(0, 24, 25, "L").save(labelled.files.root / labelled.files.label_maps[4])
    with pytest.raises(UserError, match=r"label_4\.png has 25 x 24 .*a/4\.png has 26 x 24"):
        packed_of(labelled, max_unreadable=1.0)
    assert left_in(labelled.folder) == []


# Room on the disk.


def test_without_room_nothing_begins(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(case.files.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"1\.\d+e-05 GB, and .*cache has 1e-05 GB free: set"):
        packed_of(case)
    assert left_in(case.folder) == []


def test_room_is_looked_up_for_a_folder_that_is_not_there_yet(case: Case) -> None:
    check_room(case.files, case.folder / "deep" / "er", 1)
    with pytest.raises(UserError, match=r"take about 1e\+09 GB"):
        check_room(case.files, case.folder / "deep" / "er", 10**18)
    assert not case.folder.exists()


def test_a_disk_that_runs_full_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cache ran full .* set data\.cache"):
        packed_of(case)
    assert left_in(case.folder) == []


# Damage, and builders at once.


@pytest.mark.parametrize("size", [0, 3, 8, 5000, -1, -400])
def test_a_cut_off_cache_is_built_again(case: Case, size: int) -> None:
    path = packed_of(case).path
    path.write_bytes(path.read_bytes()[:size])
    assert not is_packed(case.files, case.folder, None)
    assert_equals_files(packed_of(case), case.files)


@pytest.mark.parametrize("seed", range(20))
def test_a_cache_with_a_damaged_end_is_built_again_or_right(case: Case, seed: int) -> None:
    path = packed_of(case).path
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(len(content) - 700, len(content), 20):
        content[place] = generator.integers(256)
    path.write_bytes(content)
    assert_equals_files(packed_of(case), case.files)


def test_what_dead_builders_left_goes_and_what_a_living_one_writes_stays(case: Case) -> None:
    case.folder.mkdir()
    dead, living = case.folder / ".dead.arrow.tmp", case.folder / ".living.arrow.tmp"
    for path in (dead, living):
        path.write_bytes(b"half")
    with (case.folder / "living.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packed_of(case)
    assert not dead.exists()
    assert living.exists()


@contextmanager
def builder(case: Case, log: Path, hang_at: int = -1) -> Iterator[subprocess.Popen[str]]:
    words = [str(case.files.root), str(case.folder), str(log), str(hang_at), *case.files.images]
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def start(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


@pytest.mark.timeout(60)
def test_of_several_processes_at_once_one_builds(case: Case, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with builder(case, log) as first, builder(case, log) as second, builder(case, log) as third:
        start(first, second, third)
        answers = {process.communicate()[0] for process in (first, second, third)}
    assert len(answers) == 1
    reads = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(index) for _, index in reads) == list(range(10))
    assert len({pid for pid, _ in reads}) == 1
    assert_equals_files(packed_of(case), case.files)


@pytest.mark.timeout(60)
def test_when_the_builder_is_killed_one_that_waits_takes_over(case: Case, tmp_path: Path) -> None:
    log, log_of_second = tmp_path / "log", tmp_path / "log of second"
    with builder(case, log, hang_at=6) as first, builder(case, log_of_second) as second:
        start(first)
        while not log.is_file() or " 6\n" not in log.read_text():
            time.sleep(0.01)
        start(second)
        time.sleep(0.3)
        assert not log_of_second.exists()
        assert [name for name in left_in(case.folder) if name.endswith(".tmp")]
        assert not is_packed(case.files, case.folder, None)
        os.kill(first.pid, signal.SIGKILL)
        second.communicate()
        assert second.returncode == 0
    counts = Counter(line.split()[1] for line in log_of_second.read_text().splitlines())
    assert counts == {str(index): 1 for index in range(10)}
    assert len(left_in(case.folder)) == 1
    assert_equals_files(packed_of(case), case.files)
