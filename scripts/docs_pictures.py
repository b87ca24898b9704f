"""Makes the pictures of docs/: a study of digits, its report, and what its models see.

    python scripts/docs_pictures.py OUT

Searches digits, trains the best three again over new seeds, opens the sealed test once, trains
vanilla, CSG as published and, as the paper's Fig. 2 has it, a model on real images: the labelled
versions of target_train, which no other model and no split that is measured here contains. Then
the report, its figures and photographs of its page at the width of a desk and of a phone (`make
browser-tools`).
Everything is kept in OUT; a second call goes on where the first one was stopped. About twenty
minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from csg_ray.config import RunConfig, override_config
from csg_ray.config.data import DigitsConfig
from csg_ray.config.load import config_to_mapping
from csg_ray.config.reader import dump_yaml
from csg_ray.data.digits.task import handwritten_images
from csg_ray.search_space import load_search_space

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "search_spaces" / "digits.yaml"
WIDTHS = {"desk": 1280, "phone": 390}
MARGIN = 16  # pixels


def run(out: Path, *words: object) -> None:
    """A command of csg_ray, in `out`: pictures show short paths."""
    print("csg-ray", *words, flush=True)
    subprocess.run([sys.executable, "-m", "csg_ray", *map(str, words)], cwd=out, check=True)


def train(out: Path, name: str, config: RunConfig) -> str:
    """A run of its own, begun or gone on with; its directory below `out`."""
    directory = f"runs/{name}"
    if (out / directory / "run.yaml").exists():
        run(out, "restore", directory)
        return directory
    (out / "runs").mkdir(exist_ok=True)
    (out / f"{directory}.yaml").write_text(dump_yaml(config_to_mapping(config)))
    run(out, "train", f"{directory}.yaml", "--out", directory)
    return directory


def real(config: RunConfig, out: Path) -> RunConfig:
    """The same training on real images: the 200 of target_train, with their labels."""
    images, labels = handwritten_images("target_train", config.data.seed)
    for tree in ("source", "target"):  # the target is measured, and not looked at
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = out / "real" / tree / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(folder / f"{number:03d}.png")
    steps = DigitsConfig().num_train // config.train.batch_size
    return override_config(
        config,
        {
            "data.name": "image_folder",
            "data.source": str(out / "real" / "source"),
            "data.target": str(out / "real" / "target"),
            "data.image_size": 32,
            "train.steps_per_epoch": steps,
        },
    )


def photograph(page: Path, out: Path) -> None:
    """The whole page, as a desk and as a phone show it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for name, width in WIDTHS.items():
            tab = browser.new_context(
                viewport={"width": width, "height": 900}, offline=True
            ).new_page()
            tab.goto(page.as_uri())
            tab.evaluate("document.querySelectorAll('[data-figure]').forEach(draw)")
            tab.wait_for_timeout(2000)
            # The rest of the page is more of the same.
            last = tab.query_selector("#figure-learning_curves")
            box = last.bounding_box()
            height = box["y"] + box["height"] + MARGIN
            tab.screenshot(
                path=out / f"report_{name}.png",
                full_page=True,
                clip={"x": 0, "y": 0, "width": width, "height": height},
            )
        browser.close()


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    study = "studies/digits"
    if not (out / study / "trials.parquet").exists():
        run(out, "search", SPACE, "--study", study, "--resume")
    run(out, "best", study, "--rerun-seeds", 3)
    if not (out / study / "test_results.json").exists():
        run(out, "evaluate", study)
    space = load_search_space(SPACE)
    published = space.config_for(space.first_point())
    vanilla = override_config(published, {"method.name": "vanilla"})
    shown = [
        train(out, "vanilla", vanilla),
        train(out, "published", published),
        study,
        train(out, "real", real(vanilla, out)),
    ]
    for folder in (out / "report", out / "figures"):
        shutil.rmtree(folder, ignore_errors=True)
    run(out, "report", study, "--images", "report")
    run(out, "figures", *shown, "--out", "figures")
    photograph(out / study / "report.html", args.docs)
    for name in ("features", "attention", "grad_cam"):
        shutil.copy(out / "figures" / f"{name}.png", args.docs / f"{name}.png")


if __name__ == "__main__":
    main()
