"""What each arm of a comparison sees in scenes of target_val, as a picture.

python benchmarks/comparison.py search_spaces/digit_scenes.yaml OUT
python benchmarks/plot_scenes.py OUT docs/digit_scenes.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from csg_ray.config import RunConfig
from csg_ray.results.figures.make import observe_models, save_figure
from csg_ray.results.figures.models import TrainedModel
from csg_ray.results.figures.observe import ModelName
from csg_ray.results.figures.panels import draw_segmentation
from csg_ray.results.figures.style import figure_style
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import CHECKPOINT_FILE, read_results

COLUMNS = 8
PREFIXES = {
    "vanilla": "vanilla",
    "CSG as published": "csg-as-published",
    "CSG, searched": "csg-searched",
}


def median_run(out: Path, prefix: str) -> TrainedModel:
    """The run of an arm whose mIoU on target_val is the median of its seeds."""
    runs = sorted(
        out.glob(f"{prefix}-*"), key=lambda run: read_results(run)[-1]["target_val/mean_iou"]
    )
    run = runs[len(runs) // 2]
    state = load_checkpoint(run / CHECKPOINT_FILE)
    return TrainedModel(
        given=str(run),
        config=RunConfig.model_validate(state["config"]),
        directory=run,
        state=state,
        selected_with_target_labels=True,
    )


def main() -> None:
    """Draw a row for the scenes, one for their labels, and one for each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    measured = json.loads((args.out / "results.json").read_text())["measured"]
    models = [median_run(args.out, prefix) for prefix in PREFIXES.values()]
    observed = observe_models(models, COLUMNS, print)
    rows = []
    for arm, model in zip(PREFIXES, observed.models, strict=True):
        assert model.task is not None
        score = float(np.mean([run["mean_iou"] for run in measured[arm]]))
        rows.append((ModelName(arm, "median of its seeds"), score, model.task.predictions))
    remarks = ["mIoU on target_val, the mean over the seeds."]
    with figure_style():
        figure = draw_segmentation(observed.images, observed.class_names, rows, remarks)
        save_figure(figure, args.picture)


if __name__ == "__main__":
    main()
