"""Images per second and core of the input pipeline, with and without the cache of decoded images.

    python benchmarks/input_pipeline.py [--images 64] [--rounds 7] [--digits-only]

First the embedded set: an epoch of `digits` (2,000 images, batches of 64, two independent views)
and an evaluation of as many, batch by batch, against the same images one by one with Pillow: the
same batches, to the bit.

Then images in files. Two independent views at 224 with the published transforms (RandAugment N 1,
M 6 at raw size, shorter side to 224, random crop), batches of 32, one process, one thread. Against
`torchvision.datasets.ImageFolder` and a `DataLoader` with the same transforms written with Pillow's
and torchvision's own parts. An image counts once, whatever the number of its views.

The images are made here: sums of smooth noise at several scales, about as hard to compress as
photographs (PNG 1.6 and JPEG 0.3 bytes per pixel; PACS' photographs: 1.7 and 0.5). `render` has an
object of that kind before a plain wall, as VisDA-17's renders do, and as PNG is smaller for it.
The sizes stand for VisDA-17's and are an assumption: renders of 500 x 400 pixels, crops of
photographs with sides of 100 to 500. Options change them.

(a) to (c) give the same views, to the bit. (d) is the cache with images scaled down to a shorter
side of 256 once, before RandAugment, which deviates from the published order.

Time is the processor time of this process, so that neighbours on the machine do not count; the
files are in the page cache, so that the disk does not either. Variants take turns, round by round;
medians, and the median of the ratios of each round.

The last line of each kind is derived, not measured: what a CSG step of ResNet-101 would ask for on
an H200, whose share of its peak speed is an assumption, beside what 16 cores would deliver.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from csg_ray.config.data import DigitsConfig, ImageFolderConfig
from csg_ray.config.run import AugmentConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import eval_batches, train_batches
from csg_ray.data.files import FileList
from csg_ray.data.load import load_splits
from csg_ray.data.packed import pack
from csg_ray.data.packed_images import PackedImages
from csg_ray.data.rand_augment import OPERATIONS, RandAugment
from csg_ray.data.splits import ClassSplit
from csg_ray.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Transform,
    build_train_transform,
    normalise,
)

SIDE = 224
MAX_SIDE = 256
BATCH = 32
VIEWS = 2
AUGMENT = AugmentConfig(num_ops=1, magnitude=6, translate="pixels", views="independent")
CONFIG = RunConfig(  # image_folder for its 224 pixels; its folders are not read
    data=ImageFolderConfig(source="-", target="-", image_size=SIDE),
    augment=AUGMENT,
    train=TrainConfig(batch_size=BATCH),
)
DIGITS = RunConfig(
    data=DigitsConfig(),
    augment=AUGMENT.model_copy(update={"translate": "fraction"}),
    train=TrainConfig(batch_size=64),
)
# ResNet-101 takes 7.8e9 multiply-adds forward at 224. A CSG step runs the student on both views
# and the teacher on one, and a backward pass costs two forward ones.
STEP_FLOPS_PER_IMAGE = 2 * 7.8e9 * (3 + 2)
H200_FLOPS = 989e12  # bfloat16, dense, by its data sheet
ASSUMED_SHARE = 0.3
CORES = 16
KINDS = {"photograph.png": "PNG, photograph", "render.png": "PNG, render", "crop.jpg": "JPEG"}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A split of one class."""

    source: FileList | PackedImages | ClassSplit
    name: str = "source_train"
    class_names: tuple[str, ...] = ("any",)
    fingerprint: str = ""

    @property
    def labels(self) -> Tensor:
        """Zeros."""
        return torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return self.source.image(index)

    def labelled_classes(self) -> list[int]:
        """The one class."""
        return [0]


def plain_rand_augment() -> RandAugment:
    """The same operations, as Pillow has them."""

    def enhance(kind: type, image: Image.Image, change: float) -> Image.Image:
        enhanced: Image.Image = kind(image).enhance(1 + change)
        return enhanced

    augment = RandAugment(AUGMENT.num_ops, AUGMENT.magnitude, AUGMENT.translate)
    table = OPERATIONS | {
        name: dataclasses.replace(OPERATIONS[name], apply=partial(enhance, kind))
        for name, kind in (
            ("contrast", ImageEnhance.Contrast),
            ("brightness", ImageEnhance.Brightness),
            ("sharpness", ImageEnhance.Sharpness),
        )
    }
    augment.operations = tuple(table.values())
    return augment


class TwoViews:
    """The transforms as one writes them with torchvision."""

    def __init__(self, augment: RandAugment) -> None:
        self.generator = Generator()
        self.one = transforms.Compose(
            [
                lambda image: augment(image, self.generator),
                transforms.Resize(SIDE),
                transforms.RandomCrop(SIDE),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """VIEWS tensors (3, SIDE, SIDE)."""
        return tuple(self.one(image) for _ in range(VIEWS))


def noise(generator: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """(height, width, 3), smooth at seven scales, about 128."""
    total = np.full((height, width, 3), 128, np.float32)
    for octave in range(7):
        cells = (max(2, height * 2**octave // 128), max(2, width * 2**octave // 128))
        coarse = generator.normal(0, 60 / (octave + 1), (*cells, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(coarse[..., channel]))
            resized = plane.resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(resized)
    return total


def make_files(folder: Path, kind: str, count: int, sides: Callable[[], tuple[int, int]]) -> float:
    """Write `count` images of `kind` into a class folder; returns their mean size in bytes."""
    generator = np.random.default_rng(0)
    (folder / "any").mkdir(parents=True)
    for number in range(count):
        width, height = sides()
        pixels = noise(generator, width, height)
        if kind.startswith("render"):
            y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            wall = np.broadcast_to(200 + 30 * y[..., None], pixels.shape)
            pixels = np.where((x**2 + y**2 < 0.5)[..., None], pixels, wall)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / "any" / f"{number:05}{Path(kind).suffix}", quality=90)
    return statistics.mean(path.stat().st_size for path in (folder / "any").iterdir())


def run(batches: Iterable[object]) -> float:
    """Seconds of processor time that an epoch takes."""
    began = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - began


def stages(files: FileList, packed: PackedImages, epoch: int) -> dict[str, float]:
    """Seconds of processor time of each step of ours, on all images."""
    spent = dict.fromkeys(("decode", "read from cache", "RandAugment", "resize + crop"), 0.0)
    augment = RandAugment(AUGMENT.num_ops, AUGMENT.magnitude, AUGMENT.translate)
    finish = Transform(SIDE, lambda image, _: image)
    generator = Generator().manual_seed(epoch)
    crops = []
    for position in range(len(files)):
        times = [time.process_time()]
        files.image(position)
        times.append(time.process_time())
        image = packed.image(position)
        times.append(time.process_time())
        views = [augment(image, generator) for _ in range(VIEWS)]
        times.append(time.process_time())
        crops += [finish.crop(view, generator) for view in views]
        times.append(time.process_time())
        for name, before, after in zip(spent, times, times[1:], strict=False):
            spent[name] += after - before
    began = time.process_time()
    for first in range(0, len(crops), BATCH):
        normalise(crops[first : first + BATCH])
    return spent | {"normalise": time.process_time() - began}


def check_equal(files: FileList, packed: PackedImages) -> None:
    """The cache, and the plain operations, change no view."""
    fast = build_train_transform(AUGMENT, SIDE)
    plain = Transform(SIDE, plain_rand_augment())
    for position in range(len(files)):
        views = [
            transform.crop(source.image(position), Generator().manual_seed(position)).tobytes()
            for transform, source in ((fast, packed), (fast, files), (plain, files))
        ]
        assert views[0] == views[1] == views[2]


def measure(folder: Path, kind: str, bytes_per_file: float, rounds: int) -> None:
    """Print the speeds of one kind of files, and where the time goes."""
    names = sorted(f"any/{path.name}" for path in (folder / "any").iterdir())
    files = FileList(folder, tuple(names))
    packed = pack(files, folder / "cache", None, 0.0, lambda done, total: None)
    scaled = pack(files, folder / "cache", MAX_SIDE, 0.0, lambda done, total: None)
    check_equal(files, packed)
    mean_pixels = statistics.mean(np.prod(files.image(p).size) for p in range(len(files)))

    def usual(augment: RandAugment) -> float:
        dataset = datasets.ImageFolder(folder, TwoViews(augment), allow_empty=True)
        return run(DataLoader(dataset, BATCH, shuffle=True, drop_last=True))

    def ours(source: FileList | PackedImages, epoch: int) -> float:
        return run(train_batches(Labelled(source), CONFIG, VIEWS, epoch))

    spent: dict[str, list[float]] = {}
    for epoch in range(rounds + 1):
        times = {
            "(a) ImageFolder": usual(plain_rand_augment()),
            "(a') ImageFolder, our operations": usual(RandAugment(1, 6, "pixels")),
            "(b) ours, no cache": ours(files, epoch),
            "(c) ours, cache": ours(packed, epoch),
            f"(d) ours, cache, shorter side {MAX_SIDE}": ours(scaled, epoch),
        } | stages(files, packed, epoch)
        if epoch > 0:  # the first warms up
            for name, seconds in times.items():
                spent.setdefault(name, []).append(seconds / len(files))
    print(f"\n{KINDS[kind]}: {bytes_per_file / 1e3:.0f} kB a file, {mean_pixels:,.0f} pixels")
    base = spent["(a) ImageFolder"]
    for name in list(spent)[:5]:
        ratio = statistics.median(b / own for b, own in zip(base, spent[name], strict=True))
        print(f"  {name:34} {1 / statistics.median(spent[name]):7.1f} images/s  {ratio:5.2f} x")
    whole = statistics.median(spent["(c) ours, cache"])
    print(f"  an image of (c) takes {1e3 * whole:.2f} ms; of these steps")
    for name in list(spent)[5:]:
        own = statistics.median(spent[name])
        share = "(not in (c))" if name == "decode" else f"{own / whole:4.0%}"
        print(f"    {name:20} {1e3 * own:6.2f} ms  {share}")
    needed = ASSUMED_SHARE * H200_FLOPS / STEP_FLOPS_PER_IMAGE
    print(
        f"  derived, not measured: at {ASSUMED_SHARE:.0%} of an H200's peak a step of {BATCH} "
        f"images needs {needed:,.0f} images/s; {CORES} cores deliver {CORES / whole:,.0f} by (c)"
    )


def measure_digits(rounds: int) -> None:
    """Print the speeds of the embedded set, batch by batch and image by image."""
    split = load_splits(DIGITS.data).source_train
    assert isinstance(split, ClassSplit)
    epochs = {
        "training": lambda split, epoch: train_batches(split, DIGITS, VIEWS, epoch),
        "evaluation": lambda split, _: eval_batches(split, DIGITS),
    }
    print(f"digits: {len(split)} images")
    for name, batches in epochs.items():
        spent: list[tuple[float, float]] = []
        for number in range(rounds + 1):
            # What `Labelled` hides is not known to be in memory.
            one_by_one, batched = batches(Labelled(split), number), batches(split, number)
            for a, b in zip(one_by_one, batched, strict=True):
                assert all(map(torch.equal, a.views, b.views))
            spent.append((run(one_by_one), run(batched)))
        slow, fast = (statistics.median(times) / len(split) for times in zip(*spent, strict=True))
        ratio = statistics.median(one / other for one, other in spent)
        print(
            f"  {name:10}  one by one {1 / slow:8,.0f} images/s ({1e6 * slow:.0f} us each), "
            f"batched {1 / fast:9,.0f} images/s ({1e6 * fast:.0f} us each), {ratio:.1f} x"
        )


def main() -> None:
    """Print images per second of the embedded set, and for every kind of files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="of each kind, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--png-size", type=int, nargs=2, default=(500, 400))
    parser.add_argument("--jpeg-sides", type=int, nargs=2, default=(100, 500))
    parser.add_argument("--digits-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_digits(options.rounds)
    if options.digits_only:
        return
    drawn = np.random.default_rng(1)
    low, high = options.jpeg_sides
    for kind in KINDS:
        png = kind.endswith("png")
        with tempfile.TemporaryDirectory() as folder:
            mean_bytes = make_files(
                Path(folder) / "images",
                kind,
                options.images,
                lambda png=png: tuple(options.png_size if png else drawn.integers(low, high, 2)),
            )
            measure(Path(folder) / "images", kind, mean_bytes, options.rounds)


if __name__ == "__main__":
    main()
