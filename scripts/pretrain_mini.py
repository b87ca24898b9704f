"""Pre-train the bundled `mini` reference encoder on real photographs.

    python scripts/pretrain_mini.py --cifar10 DIR     # torchvision's CIFAR-10, downloaded to DIR
    python scripts/pretrain_mini.py --folder DIR      # DIR/train/CLASS/* and DIR/test/CLASS/*
    python scripts/pretrain_mini.py --folder DIR --norm ibn_a --out mini_ibn_a.pt

The result holds the network and its classifier in float16 and, beside it, a JSON file that says
where it came from. About 45 s an epoch on two CPU cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Subset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from csg_ray.models.resnet import TappedResNet, build_resnet

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
DEFAULT_OUT = Path(__file__).parents[1] / "csg_ray" / "models" / "weights" / "mini.pt"


def load_images(args: argparse.Namespace, train: bool) -> tuple[Tensor, Tensor]:
    """All images as uint8 (N, 3, S, S) with their labels (N,)."""
    if args.cifar10:
        source = CIFAR10(args.cifar10, train=train, download=True)
    else:
        source = ImageFolder(str(Path(args.folder) / ("train" if train else "test")))
    if train and args.per_class:
        source = first_of_each_class(source, args.per_class)
    side = args.image_size
    images = torch.empty(len(source), 3, side, side, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.long)
    for index, (image, label) in enumerate(source):
        images[index] = pil_to_tensor(image.convert("RGB").resize((side, side)))
        labels[index] = label
    return images, labels


def first_of_each_class(source: Dataset[Any], count: int) -> Dataset[Any]:
    """The first `count` images of every class."""
    seen: Counter[int] = Counter()
    kept = []
    for index, label in enumerate(source.targets):
        seen[label] += 1
        if seen[label] <= count:
            kept.append(index)
    return Subset(source, kept)


def encoder_weights(path: str) -> dict[str, Tensor]:
    """A weight file in float32, without the classifier of its own task."""
    weights = torch.load(path, weights_only=True)
    return {
        n: v.float() if v.is_floating_point() else v
        for n, v in weights.items()
        if not n.startswith("fc.")
    }


def hash_file(path: str | Path) -> str:
    """SHA-256 as hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop out of a reflected border of an eighth of the side, and a horizontal flip."""
    count, side = len(images), images.shape[3]
    border = side // 8
    padded = functional.pad(images, (border,) * 4, mode="reflect")
    starts = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator)
    rows, columns = starts[0] + torch.arange(side), starts[1] + torch.arange(side)
    flip = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    picked = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 images to the range the encoders expect."""
    return ((images.float() / 255 - MEAN) / STD).to(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: TappedResNet, images: Tensor, labels: Tensor) -> float:
    """Share of images whose pre-training class is right."""
    network.eval()
    correct = 0
    for start in range(0, len(images), 500):
        batch = normalise(images[start : start + 500])
        predictions = network.pretraining_logits(network(batch)[4]).argmax(dim=1)
        correct += int((predictions == labels[start : start + 500]).sum())
    return correct / len(images)


def train(network: TappedResNet, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """SGD with a one-cycle schedule and label smoothing."""
    generator = torch.Generator().manual_seed(args.seed)
    steps = len(images) // args.batch_size
    optimizer = torch.optim.SGD(
        network.parameters(), lr=args.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=steps * args.epochs, pct_start=0.2
    )
    for epoch in range(1, args.epochs + 1):
        network.train()
        started, total = time.time(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            picked = order[step * args.batch_size : (step + 1) * args.batch_size]
            batch = normalise(augment(images[picked].float(), generator))
            logits = network.pretraining_logits(network(batch)[4])
            loss = functional.cross_entropy(logits, labels[picked], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch:3d}  loss {total / steps:.4f}  {time.time() - started:.0f} s", flush=True
        )


def save(
    network: TappedResNet, args: argparse.Namespace, measured: float, fingerprint: str, count: int
) -> None:
    """Write float16 weights and the provenance beside them."""
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    out = Path(args.out)
    torch.save(half, out)
    provenance = {
        "model": "mini",
        "norm": args.norm,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dtype": "float16",
        "data": "CIFAR-10 (Krizhevsky 2009)" if args.cifar10 else args.data_name,
        "images": count,
        "started_from": hash_file(args.start) if args.start else None,
        "image_size": args.image_size,
        "data_sha256": fingerprint,
        "test_accuracy": round(measured, 4),
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "torch": torch.__version__,
        "file_sha256": hash_file(out),
    }
    out.with_suffix(".json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(json.dumps(provenance, indent=2))


def main() -> None:
    """Parse the command line, train, measure, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cifar10", help="folder for torchvision's CIFAR-10 (downloads it)")
    where.add_argument("--folder", help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--data-name", default="an image folder", help="what --folder holds")
    parser.add_argument("--norm", choices=["batch", "ibn_a", "ibn_b"], default="batch")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--start", help="weight file to start from, whatever its classes")
    parser.add_argument("--per-class", type=int, help="train on the first so many of each class")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(DEFAULT_OUT))
    args = parser.parse_args()

    images, labels = load_images(args, train=True)
    num_classes = int(labels.max()) + 1
    torch.manual_seed(args.seed)
    network = build_resnet("mini", args.norm, num_classes)
    if args.start:
        network.load_state_dict(encoder_weights(args.start), strict=False)
    network.fc.requires_grad_(True)
    network = network.to(memory_format=torch.channels_last)
    fingerprint = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    train(network, images, labels, args)
    half = build_resnet("mini", args.norm, num_classes)
    half.load_state_dict(
        {
            n: v.half().float() if v.is_floating_point() else v
            for n, v in network.state_dict().items()
        }
    )
    save(half, args, accuracy(half, *load_images(args, train=False)), fingerprint, len(images))


if __name__ == "__main__":
    main()
