"""What each arm of a comparison sees in scenes of target_val, as a picture.

python benchmarks/comparison.py search_spaces/digit_scenes.yaml OUT
python benchmarks/plot_scenes.py OUT docs/digit_scenes.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from csg_ray.config import RunConfig
from csg_ray.data.epoch import eval_batches
from csg_ray.data.load import load_splits
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import CHECKPOINT_FILE, read_results
from csg_ray.training.evaluate import load_trained

COLUMNS = 8
PREFIXES = {
    "vanilla": "vanilla",
    "CSG as published": "csg-as-published",
    "CSG, searched": "csg-searched",
}


def median_run(out: Path, prefix: str) -> Path:
    """The run of an arm whose mIoU on target_val is the median of its seeds."""
    runs = sorted(
        out.glob(f"{prefix}-*"), key=lambda run: read_results(run)[-1]["target_val/mean_iou"]
    )
    return runs[len(runs) // 2]


@torch.inference_mode()
def predictions(run: Path) -> tuple[Any, Any, Any]:
    """Images, labels and predicted classes of the first scenes."""
    state = load_checkpoint(run / CHECKPOINT_FILE)
    config = RunConfig.model_validate(state["config"])
    splits = load_splits(config.data)
    (method,) = load_trained(config, splits, state, torch.device("cpu"))
    batch = next(iter(eval_batches(splits.target_val, config)))
    images = batch.views[0][:COLUMNS]
    return images, batch.labels[:COLUMNS], method.eval().predict(images).argmax(dim=1)


def main() -> None:
    """Draw a row for the scenes, one for their labels, and one for each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    measured = json.loads((args.out / "results.json").read_text())["measured"]
    colours = matplotlib.colors.ListedColormap(["black", *plt.get_cmap("tab10").colors])
    rows: list[tuple[str, Any, Any]] = []
    for arm, prefix in PREFIXES.items():
        images, labels, classes = predictions(median_run(args.out, prefix))
        if not rows:
            rows += [("handwritten", images[:, 0], "gray"), ("labels", labels, colours)]
        score = np.mean([run["mean_iou"] for run in measured[arm]])
        rows.append((f"{arm}\nmIoU {score:.2f}", classes, colours))
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=(COLUMNS, len(rows)), squeeze=False)
    for (name, pictures, colour), line in zip(rows, axes, strict=True):
        for picture, axis in zip(pictures, line, strict=True):
            limits = {"vmin": 0, "vmax": 10} if colour is colours else {}
            axis.imshow(picture, cmap=colour, interpolation="nearest", **limits)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
