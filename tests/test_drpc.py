"""Stylised copies, and the consistency over them, against a plain form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from csg_ray.cli.preparing import prepare_run, prepare_study
from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.load import override_config
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import train_batches
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.data.splits import ArraySplit
from csg_ray.data.styled import StyledImages, file_names, open_styles
from csg_ray.methods import build_method
from csg_ray.methods.drpc import DRPC, pyramid_inconsistency
from csg_ray.search_space import parse_search_space
from made_data import refusal
from method_settings import method_config, stylised_copies
from resumed import assert_resumes_to_the_bit

DIGITS = DigitsConfig(num_train=24, num_val=10)
SCENES = DigitScenesConfig(num_train=12, num_val=10)


def _config(segmentation: bool = False, num_ops: int = 0, **settings: Any) -> RunConfig:
    head: Any = "fcn" if segmentation else "mlp"
    data = SCENES if segmentation else DIGITS
    return RunConfig(
        data=data,
        model=ModelConfig(head=head),
        method=method_config("drpc", styles=stylised_copies(data), **settings),
        augment=AugmentConfig(num_ops=num_ops, translate="fraction"),
        train=TrainConfig(batch_size=4, epochs=2, learning_rate=0.02),
    )


def _build(config: RunConfig) -> DRPC:
    method = build_method(config, len(load_splits(config.data).class_names), 3)
    assert isinstance(method, DRPC)
    return method


def _plain(features: Tensor, versions: int, grids: list[int]) -> Tensor:
    """Version by version, cell by cell; the sides are multiples of the grids."""
    count, channels, height, width = features.shape
    images = count // versions
    total = torch.zeros((), dtype=features.dtype)
    for grid in grids:
        squares, number = torch.zeros((), dtype=features.dtype), 0
        rows, columns = height // grid, width // grid
        for image in range(images):
            for row in range(grid):
                for column in range(grid):
                    cells = [
                        features[
                            version * images + image,
                            :,
                            row * rows : (row + 1) * rows,
                            column * columns : (column + 1) * columns,
                        ].sum(dim=(1, 2))
                        / (rows * columns)
                        for version in range(versions)
                    ]
                    mean = torch.stack(cells).sum(dim=0) / versions
                    for cell in cells:
                        squares = squares + ((cell - mean) ** 2).sum()
                        number += channels
        total = total + squares / number
    return total


@pytest.mark.parametrize("grids", [[1], [2], [1, 2, 4]])
def test_the_inconsistency_equals_the_plain_one(grids: list[int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(3 * 2, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    found, expected = pyramid_inconsistency(features, 3, tuple(grids)), _plain(features, 3, grids)
    torch.testing.assert_close(found, expected)
    for left, right in zip(
        torch.autograd.grad(found, features), torch.autograd.grad(expected, features), strict=True
    ):
        torch.testing.assert_close(left, right)


def test_equal_versions_are_consistent() -> None:
    features = torch.randn(2, 5, 4, 4).repeat(3, 1, 1, 1)
    assert pyramid_inconsistency(features, 3, (1, 2)) < 1e-12


@pytest.mark.parametrize("segmentation", [False, True], ids=["images", "pixels"])
def test_the_loss_is_that_of_all_versions(segmentation: bool) -> None:
    config = _config(segmentation, loss_weight=0.7, stages="3,4", grids="1,2")
    method = _build(config).double()
    split = method.training_data(load_splits(config.data), 1)
    (first, *_) = list(train_batches(split, config, method.num_views, 1))
    batch = Batch(tuple(view.double() for view in first.views), first.labels, first.indices)
    assert len(batch.views) == 3
    maps = [method.features(view) for view in batch.views]
    expected = torch.stack([method.task_loss(each, batch.labels) for each in maps]).mean()
    for stage in (3, 4):
        expected = expected + 0.7 * _plain(torch.cat([m[stage] for m in maps]), 3, [1, 2])
    parameters = [param for param in method.parameters() if param.requires_grad]
    output = method.training_loss(batch)
    torch.testing.assert_close(output.loss, expected)
    wanted = torch.autograd.grad(expected, parameters)
    for found, right in zip(torch.autograd.grad(output.loss, parameters), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)
    assert output.logs["inconsistency"] > 0


def _pixels(view: Tensor) -> Tensor:
    """Grey levels of a normalised view (N, 3, S, S)."""
    return (view[:, 0] * 0.229 + 0.485) * 255


def test_views_are_the_image_and_copies_in_different_styles() -> None:
    config = _config(copies=2)
    split = _build(config).training_data(load_splits(config.data), 1)
    seen: set[tuple[int, ...]] = set()
    for batch in train_batches(split, config, 3, 1):
        for place, index in enumerate(batch.indices.tolist()):
            image = np.asarray(split.image(index))[:, :, 0].astype(int)
            # As `stylised_copies` makes them.
            copies = {style: image // (style + 2) + 30 * style for style in range(3)}
            torch.testing.assert_close(
                _pixels(batch.views[0])[place], torch.from_numpy(image).float(), atol=0.01, rtol=0
            )
            styles = tuple(
                style
                for view in batch.views[1:]
                for style, copy in copies.items()
                if np.abs(_pixels(view)[place].numpy() - copy).max() < 0.01
            )
            assert len(styles) == len(set(styles)) == 2
            seen.add(styles)
    assert len(seen) > 3  # of the six ordered pairs


def test_the_same_seed_and_epoch_draw_the_same_whatever_the_workers() -> None:
    config = _config(num_ops=1)
    split = _build(config).training_data(load_splits(config.data), 1)
    other = config.model_copy(update={"data": config.data.model_copy(update={"workers": 2})})
    first, second = (list(train_batches(split, c, 3, 1)) for c in (config, other))
    for left, right in zip(first, second, strict=True):
        assert all(a.equal(b) for a, b in zip(left.views, right.views, strict=True))
    (again, *_) = list(train_batches(split, config, 3, 2))
    assert not again.views[1].equal(first[0].views[1])


@pytest.mark.parametrize("views", ["independent", "shared"])
def test_copies_are_augmented_as_the_views_are(views: Any) -> None:
    """With copies that are the image itself only the augmentation can tell views apart."""
    splits = load_splits(DIGITS)
    same = StyledImages(splits.source_train, Path(), ("a", "b"), (), 2)
    object.__setattr__(same, "copies", lambda index, size, generator: [same.image(index)] * 2)
    augment = AugmentConfig(num_ops=3, magnitude=20, translate="fraction", views=views)
    config = _config().model_copy(update={"augment": augment})
    equal = [
        batch.views[0].equal(view)
        for batch in train_batches(same, config, 3, 1)
        for view in batch.views[1:]
    ]
    assert all(equal) is (views == "shared")
    assert any(equal) is (views == "shared")


def test_all_versions_of_a_scene_are_cut_alike() -> None:
    config = _config(segmentation=True, copies=3)
    split = _build(config).training_data(load_splits(config.data), 1)
    for batch in train_batches(split, config, 4, 1):
        image, *copies = map(_pixels, batch.views)
        ink = image > 150
        assert ink.any()
        for other in copies:
            # The copies are darker, and monotone in the image: bright where the image is.
            assert other[ink].min() >= other[image < 20].max() - 25
        assert (batch.labels[image < 20] == 0).float().mean() > 0.9


def test_a_copy_of_another_size_is_brought_to_that_of_its_image(tmp_path: Path) -> None:
    split = load_splits(DIGITS).source_train
    for name in file_names(split):
        (tmp_path / "large").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (200, 0, 0)).save(tmp_path / "large" / name)
    styled = open_styles(split, str(tmp_path), 1)
    (copy,) = styled.copies(0, (32, 32), torch.Generator())
    assert copy.size == (32, 32)
    assert isinstance(split, ArraySplit)
    assert styled.labels.equal(split.labels)  # type: ignore[attr-defined]


def test_a_training_resumes_to_the_bit() -> None:
    config = _config(num_ops=1)
    assert_resumes_to_the_bit(config, load_splits(config.data))


def _refused(folder: Path, **settings: Any) -> list[str]:
    base = {
        "method.name": "drpc",
        "method.styles": str(folder),
        "data.num_train": 24,
        "data.num_val": 10,
        **settings,
    }
    space = parse_search_space(
        {
            "study": "s",
            "base": base,
            "space": {"method.loss_weight": {"choice": [0.2, 0.5]}},
            "search": {"metric": "target_val/hse", "mode": "min"},
        }
    )
    config = override_config(RunConfig(), base)
    return [refusal(lambda: prepare_run(config)), refusal(lambda: prepare_study(space))]


def test_a_bad_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for sentence in _refused(tmp_path / "nowhere"):
        assert f"method.styles: the folder {tmp_path}/nowhere does not exist" in sentence
    for sentence in _refused(tmp_path):
        assert f"method.styles: {tmp_path} holds no folder" in sentence
    whole = Path(stylised_copies(DIGITS))
    for sentence in _refused(whole, **{"method.copies": 4}):
        assert f"{whole} holds 3 styles, fewer than method.copies 4" in sentence
    for style in ("a", "b"):
        (tmp_path / style).mkdir()
        for number in range(24 - 3 * (style == "b")):
            (tmp_path / style / f"{number:06d}.png").touch()
    for sentence in _refused(tmp_path):
        assert f"{tmp_path} lacks b/000021.png and 2 more; every style needs a copy" in sentence


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    split = load_splits(DIGITS).source_train
    (tmp_path / "a").mkdir()
    for name in file_names(split):
        (tmp_path / "a" / name).write_bytes(b"no image")
    styled = open_styles(split, str(tmp_path), 1)
    sentence = refusal(lambda: styled.copies(5, (32, 32), torch.Generator()))
    assert sentence.startswith("method.styles: ")
    assert "a/000005.png" in sentence


@pytest.mark.parametrize("grids", ["0", "1,1", "a", "1,,2", "100", True])
def test_bad_grids_are_refused(grids: Any) -> None:
    with pytest.raises(ValueError, match="must be different numbers from 1 to 99"):
        method_config("drpc", grids=grids)


def test_every_output_is_told() -> None:
    assert any("stylised copies" in note for note in _config().notes)


def _script() -> Any:
    path = Path(__file__).parents[1] / "scripts" / "stylise.py"
    spec = importlib.util.spec_from_file_location("stylise", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_amplitudes_of_low_frequencies_are_exchanged_and_no_phase() -> None:
    generator = np.random.default_rng(0)
    # Far from 0 and 255, where nothing is cut off.
    image, photograph = (
        generator.integers(100, 150, (16, 16, 3)).astype(np.uint8) for _ in range(2)
    )
    mixed = _script().exchange_amplitudes(image, photograph, 0.25)
    found, own, style = (
        np.fft.fft2(each.astype(float), axes=(0, 1)) for each in (mixed, image, photograph)
    )
    low = [-2, -1, 0, 1, 2]
    for row in range(-8, 8):
        for column in range(-8, 8):
            source = style if row in low and column in low else own
            wanted = np.abs(source[row, column]) * np.exp(1j * np.angle(own[row, column]))
            np.testing.assert_allclose(found[row, column], wanted, atol=16)  # of rounding
    unchanged = _script().exchange_amplitudes(image, image, 0.5)
    assert np.abs(unchanged.astype(int) - image).max() <= 1


def test_the_script_makes_what_the_method_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = tmp_path / "photographs" / "cat"
    photographs.mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{number}.jpg")
    space = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
    arguments = [str(space), "--photographs", str(tmp_path / "photographs"), "--styles", "2"]
    arguments += ["--out", str(tmp_path / "styles"), "--set", "data.num_train=24"]
    monkeypatch.setattr(sys, "argv", ["stylise.py", *arguments])
    _script().main()
    split = load_splits(DigitsConfig(num_train=24)).source_train
    styled = open_styles(split, str(tmp_path / "styles"), 2)
    assert len(styled.styles) == 2
    for made in styled.copies(3, (32, 32), torch.Generator()):
        assert np.abs(np.asarray(made).astype(int) - np.asarray(split.image(3))).max() > 10
