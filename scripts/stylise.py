"""Make copies of a task's source images in the styles of photographs, for the method `drpc`.

    python scripts/stylise.py search_spaces/digits.yaml --photographs DIR --out STYLES

and then method.name drpc with method.styles STYLES. Of each source_train image and each of K
photographs drawn from all below DIR, the copy has the low frequencies of the photograph's amplitude
spectrum and all else of the image (Yang and Soatto, "FDA", CVPR 2020). This is not the translator
of Yue et al. (ICCV 2019), who let a network repaint an image in the style of an ImageNet class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from csg_ray.cli.preparing import parse_settings
from csg_ray.config.load import load_config, override_config
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.data.load import load_splits
from csg_ray.data.styled import file_names
from csg_ray.search_space import load_search_space


def exchange_amplitudes(
    image: NDArray[np.uint8], photograph: NDArray[np.uint8], share: float
) -> NDArray[np.uint8]:
    """The image with the photograph's amplitudes at low frequencies.

    Args:
        image: (H, W, 3).
        photograph: of the same shape.
        share: of each axis of the centred spectrum that is exchanged, around its middle.
    """
    spectrum, style = (
        np.fft.fftshift(np.fft.fft2(each.astype(float), axes=(0, 1)), axes=(0, 1))
        for each in (image, photograph)
    )
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    # An odd number of frequencies around 0, so that the result stays real.
    reach = [int(share * side / 2) for side in image.shape[:2]]
    low = tuple(
        slice(side // 2 - near, side // 2 + near + 1)
        for side, near in zip(image.shape[:2], reach, strict=True)
    )
    amplitude[low] = np.abs(style)[low]
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(0, 1))
    back: NDArray[np.float64] = np.fft.ifft2(mixed, axes=(0, 1)).real
    return np.clip(back.round(), 0, 255).astype(np.uint8)


def draw_photographs(folder: Path, count: int, seed: int) -> list[Path]:
    """So many files, drawn from all images below a folder."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if len(found) < count:
        raise SystemExit(f"{folder} holds {len(found)} images, fewer than the {count} styles")
    drawn = np.random.default_rng(seed).choice(len(found), count, replace=False)
    return [found[number] for number in drawn]


def first_config(file: Path, settings: list[str]) -> RunConfig:
    """Of a search space or a run config."""
    overrides = parse_settings(settings)
    if "space" in read_yaml(file):
        return load_search_space(file, overrides).first_config()
    return override_config(load_config(str(file)), overrides)


def main() -> None:
    """Write a folder for each style."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, help="search space or run config that names the task")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--styles", type=int, default=5, help="K, how many photographs")
    parser.add_argument("--share", type=float, default=0.1, help="of the spectrum's sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    args = parser.parse_args()

    split = load_splits(first_config(args.file, args.set).data).source_train
    photographs = draw_photographs(args.photographs, args.styles, args.seed)
    args.out.mkdir(parents=True)
    names = file_names(split)
    for style, path in enumerate(photographs):
        folder = args.out / f"{style:02d}_{path.stem}"
        photograph = Image.open(path).convert("RGB")
        for number, name in enumerate(names):
            image = split.image(number)
            pixels = np.asarray(photograph.resize(image.size))
            copy = exchange_amplitudes(np.asarray(image), pixels, args.share)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(copy).save(folder / name)
        print(f"{folder}: {len(names)} copies in the style of {path}", flush=True)


if __name__ == "__main__":
    main()
