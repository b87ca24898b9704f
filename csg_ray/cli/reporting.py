"""`report`: the page of a study, or its figures as pictures."""

from __future__ import annotations

from pathlib import Path

from csg_ray.cli.board import describe_bytes
from csg_ray.cli.guard import say
from csg_ray.config.errors import UserError
from csg_ray.results.export import check_new_directory, check_new_file
from csg_ray.results.study import load_study
from csg_ray.storage.folders import check_writable
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import write_atomically

PAGE = "report.html"


def write_report(
    directory: StoragePath, out: StoragePath | None, images: Path | None, image_format: str
) -> None:
    """Write the page into the study, over an older one, or to `out`; the figures to `images`."""
    study = load_study(directory)
    if not study.trials:
        raise UserError(f"study {directory} has no trial yet, so there is nothing to report")
    if out is not None:
        check_new_file(out)
    else:
        check_writable(directory)
    if images is not None:
        from csg_ray.results.report.pictures import check_renderer

        check_new_directory(images)
        if images.exists():
            raise UserError(f"{images} exists and is not overwritten; choose another name")
        check_renderer()
    say(f"reading {len(study.trials)} trials ...")
    from csg_ray.results.report.page import build_report, render_page

    report = build_report(study)
    page = render_page(report)
    place = out or directory / PAGE
    write_atomically(place, page)
    print(f"written to {place}: {describe_bytes(len(page.encode()))}, opens without a network")
    for caution in report.cautions:
        print(f"caution: {caution.what}")
    if images is not None:
        from csg_ray.results.report.pictures import write_pictures

        write_pictures(report.figures, images, image_format)
        print(f"written to {images}: {len(report.figures)} figures as {image_format}")
