from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision import transforms

from csg_ray.config.data import DigitsConfig, ImageFolderConfig
from csg_ray.config.errors import UserError
from csg_ray.config.run import AugmentConfig, EvaluationConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import eval_batches, train_batches
from csg_ray.data.loader import Batch, Batches, num_loaders
from csg_ray.data.splits import ArraySplit
from csg_ray.data.transforms import build_eval_transform, build_train_transform, normalise

STRONG = AugmentConfig(num_ops=2, magnitude=20, translate="fraction")


@pytest.fixture
def split() -> ArraySplit:
    images = np.random.default_rng(0).integers(0, 256, (22, 32, 32), dtype=np.uint8)
    return ArraySplit("source_train", images, torch.arange(22) % 5, tuple("abcde"))


def epoch(
    split: ArraySplit,
    augment: AugmentConfig = STRONG,
    num_views: int = 2,
    batch_size: int = 5,
    seed: int = 0,
    number: int = 0,
    workers: int = 0,
) -> Batches:
    config = RunConfig(
        seed=seed,
        data=DigitsConfig(workers=workers),
        augment=augment,
        train=TrainConfig(batch_size=batch_size),
    )
    return train_batches(split, config, num_views, number)


def evaluation(split: ArraySplit, batch_size: int, workers: int = 0) -> Batches:
    settings = EvaluationConfig(batch_size=batch_size)
    config = RunConfig(data=DigitsConfig(workers=workers), evaluation=settings)
    return eval_batches(split, config)


def by_index(batches: Batches) -> dict[int, tuple[Tensor, ...]]:
    return {
        int(index): tuple(view[row] for view in batch.views)
        for batch in batches
        for row, index in enumerate(batch.indices)
    }


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        for view_a, view_b in zip(a.views, b.views, strict=True):
            assert torch.equal(view_a, view_b)


def random_image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_epoch_visits_images_once_and_drops_the_rest(split: ArraySplit) -> None:
    batches = epoch(split)
    assert len(batches) == 4
    listed = list(batches)
    assert [tuple(batch.views[0].shape) for batch in listed] == [(5, 3, 32, 32)] * 4
    indices = torch.cat([batch.indices for batch in listed])
    assert len(indices) == len(set(indices.tolist())) == 20
    assert indices.tolist() != sorted(indices.tolist())
    labels = torch.cat([batch.labels for batch in listed])
    assert torch.equal(labels, indices % 5)


@pytest.mark.parametrize("implementation", ["authors", "torchvision"])
def test_workers_change_nothing(split: ArraySplit, implementation: str) -> None:
    augment = AugmentConfig(implementation=implementation, num_ops=2, magnitude=20)  # type: ignore[arg-type]
    alone = list(epoch(split, augment))
    assert_equal(alone, list(epoch(split, augment, workers=2)))
    assert_equal(list(evaluation(split, 8, 0)), list(evaluation(split, 8, 2)))


def test_an_epoch_repeats_and_epochs_and_seeds_differ(split: ArraySplit) -> None:
    first = list(epoch(split))
    assert_equal(first, list(epoch(split)))
    for other in (epoch(split, number=1), epoch(split, seed=1)):
        listed = list(other)
        assert not torch.equal(listed[0].indices, first[0].indices)
        images, others = by_index(epoch(split)), by_index(other)
        common = images.keys() & others.keys()
        assert sum(not torch.equal(images[i][0], others[i][0]) for i in common) > 10


def test_an_image_is_augmented_alike_in_any_batch(split: ArraySplit) -> None:
    small, large = by_index(epoch(split, batch_size=2)), by_index(epoch(split, batch_size=11))
    assert small.keys() == large.keys() == set(range(22))
    for index, views in small.items():
        for view, other in zip(views, large[index], strict=True):
            assert torch.equal(view, other)


def test_independent_views_differ_and_extra_views_leave_the_first_alone(split: ArraySplit) -> None:
    two, one = by_index(epoch(split)), by_index(epoch(split, num_views=1))
    assert sum(not torch.equal(first, second) for first, second in two.values()) > 10
    assert all(torch.equal(two[index][0], views[0]) for index, views in one.items())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "augment", [AugmentConfig(views="shared", magnitude=20), AugmentConfig(num_ops=0)]
)
def test_views_that_cannot_differ_are_one_tensor(
    split: ArraySplit, augment: AugmentConfig, workers: int
) -> None:
    for batch in epoch(split, augment, num_views=3, workers=workers):
        assert len(batch.views) == 3
        assert len({id(view) for view in batch.views}) == 1
        assert len({id(view) for view in batch.to("cpu").views}) == 1


def test_batch_moves_to_a_device(split: ArraySplit) -> None:
    batch = next(iter(epoch(split))).to("meta")
    assert [tensor.device.type for tensor in (*batch.views, batch.labels, batch.indices)] == [
        "meta"
    ] * 4
    assert batch.views[0] is not batch.views[1]


@pytest.mark.parametrize("views", ["independent", "shared"])
def test_batches_are_pinned_for_cuda(
    split: ArraySplit, views: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    augment = AugmentConfig(views=views)  # type: ignore[arg-type]
    plain = list(epoch(split, augment))
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    assert_equal(list(epoch(split, augment)), plain)
    assert pinned == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batches = list(epoch(split, augment))
    assert_equal(batches, plain)
    held = {id(tensor) for each in batches for tensor in (*each.views, each.labels, each.indices)}
    assert held == {id(tensor) for tensor in pinned}
    assert len(pinned) == 4 * (4 if views == "independent" else 3)


@pytest.mark.parametrize(
    ("threads", "device", "files", "expected"),
    [
        (8, "cuda", True, 7),
        (1, "cuda", True, 0),
        (64, "cuda", True, 16),
        (8, "cuda", False, 0),
        (8, "cpu", True, 0),
        (8, None, True, 0),
    ],
)
def test_auto_leaves_the_training_on_a_gpu_a_processor(
    threads: int, device: str | None, files: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    config = ImageFolderConfig(source="-", target="-") if files else DigitsConfig()
    place = None if device is None else torch.device(device)
    assert num_loaders(config, place) == expected
    assert num_loaders(config.model_copy(update={"workers": 3}), place) == 3


def test_global_generators_stay_untouched(split: ArraySplit) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    for workers in (0, 2):
        list(epoch(split, workers=workers))
        list(epoch(split, AugmentConfig(implementation="torchvision"), workers=workers))
        list(evaluation(split, 8, workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # type: ignore[index] # noqa: NPY002


def test_evaluation_reads_everything_in_order(split: ArraySplit) -> None:
    batches = evaluation(split, 8, 0)
    assert len(batches) == 3
    listed = list(batches)
    assert [len(batch.labels) for batch in listed] == [8, 8, 6]
    assert torch.cat([batch.indices for batch in listed]).tolist() == list(range(22))
    grey = torch.from_numpy(split.images).float()[:, None].expand(-1, 3, -1, -1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (grey - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(torch.cat([batch.views[0] for batch in listed]), expected)


def test_no_augmentation_means_the_evaluation_image(split: ArraySplit) -> None:
    plain = torch.cat([batch.views[0] for batch in evaluation(split, 22, 0)])
    for index, views in by_index(epoch(split, AugmentConfig(num_ops=0))).items():
        assert torch.equal(views[0], plain[index])


def test_a_split_smaller_than_a_batch_is_refused(split: ArraySplit) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size 23 .* 22 images .* at most 22"):
        epoch(split, batch_size=23)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (17, 23), (24, 24), (24, 31)])
def test_evaluation_transform_equals_torchvisions(height: int, width: int) -> None:
    image = random_image(height, width)
    reference = transforms.Compose(
        [
            transforms.Resize(24),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.equal(build_eval_transform(24)(image), reference(image))


def test_each_image_of_a_batch_is_normalised_as_torchvision_does() -> None:
    images = [Image.fromarray(np.roll(np.asarray(random_image(9, 13)), k, 0)) for k in range(3)]
    one = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.equal(normalise(images), torch.stack([one(image) for image in images]))


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_is_cut_from_the_whole_scaled_image(seed: int) -> None:
    generator = np.random.default_rng(seed)
    transform = build_train_transform(AugmentConfig(magnitude=0), 50)
    for width, height in [*generator.integers(10, 160, (40, 2)).tolist(), [50, 90], [90, 50]]:
        image = random_image(height, width)
        shorter = min(width, height)
        size = (int(50 * width / shorter), int(50 * height / shorter))
        scaled = image.resize(size, Image.Resampling.BILINEAR)
        crop = transform.crop(image, Generator().manual_seed(seed))
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(scaled), (50, 50, 3))
        found = (windows == np.asarray(crop)).all(axis=(-3, -2, -1)).sum()
        assert found == 1, (width, height)


def test_training_crops_everywhere_along_the_longer_side() -> None:
    transform = build_train_transform(AugmentConfig(magnitude=0), 24)
    image = random_image(24, 28)
    candidates = [normalise([image.crop((left, 0, left + 24, 24))])[0] for left in range(5)]
    seen = set()
    for seed in range(60):
        crop = transform(image, Generator().manual_seed(seed))
        matches = [left for left, each in enumerate(candidates) if torch.equal(crop, each)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == {0, 1, 2, 3, 4}


def test_augmentation_comes_before_the_resize() -> None:
    # 20 of 120 raw pixels are 4 of 24 columns, one of them blended at the edge by the resize;
    # moved after the resize they would be 20 columns.
    augment = AugmentConfig(num_ops=1, magnitude=6, translate="pixels")
    transform = build_train_transform(augment, 24)
    grey = Image.new("RGB", (120, 120), (150, 150, 150))
    black_columns = set()
    for seed in range(200):
        crop = np.asarray(transform.crop(grey, Generator().manual_seed(seed)))
        black_columns.add(int((crop.max(axis=(0, 2)) == 0).sum()))
    assert black_columns == {0, 3}
