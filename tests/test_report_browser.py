"""The page of a report in a real browser, without a network, as wide as a desk and as a phone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.results.report.pictures import write_pictures
from csg_ray.results.report.plots import build_figures
from csg_ray.results.study import load_study

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
CHROMIUM = "/usr/bin/chromium"
WIDTHS = {"desk": 1280, "phone": 360}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Debian's own, as root and without a sandbox, which a container has no room for.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def curves(draws: random.Random, epochs: int) -> list[tuple[float, float, float]]:
    return [(draws.random(), draws.random(), draws.random()) for _ in range(epochs)]


@pytest.fixture
def page(make_study: Callable[..., Path]) -> Path:
    draws = random.Random(0)
    states = ["completed"] * 12 + ["stopped"] * 6 + ["diverged"]
    trials = [(state, curves(draws, 3 if state == "completed" else 1)) for state in states]
    directory = make_study(*trials)
    assert main(["report", str(directory)]) == 0
    return directory / "report.html"


@pytest.fixture(params=WIDTHS)
def tab(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Any]:
    """The page in a tab that fails the test when the page complains or asks for a file."""
    context = browser.new_context(
        viewport={"width": WIDTHS[request.param], "height": 800}, offline=True
    )
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda asked: complaints.append(asked.url))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert complaints == []


def scroll_to_the_end(tab: Any) -> None:
    for place in tab.query_selector_all("[data-figure]"):
        place.scroll_into_view_if_needed()
        tab.wait_for_function("place => place.querySelector('.main-svg')", arg=place)


def test_figures_are_drawn_as_they_come_into_view(tab: Any, page: Path) -> None:
    study = load_study(page.parent)
    names = [figure.name for figure in build_figures(study, study.best_trial())]
    drawn = "document.querySelectorAll('[data-drawn]').length"
    assert tab.evaluate(drawn) < len(names)
    scroll_to_the_end(tab)
    assert tab.evaluate(drawn) == len(names)
    # Something can be seen in each: marks of points, lines or bars.
    for name in names:
        marks = tab.query_selector_all(
            f"#figure-{name.replace('.', chr(92) + '.')} :is(path.point, path.js-line, .bars path)"
        )
        assert marks, name


def test_nothing_is_wider_than_the_screen(tab: Any) -> None:
    scroll_to_the_end(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Tables and the widest figure scroll in frames of their own.
    widest = tab.evaluate(
        "Math.max(...[...document.querySelectorAll('figure, .scroll, .tile, p, h1, li')]"
        ".map(each => each.getBoundingClientRect().right))"
    )
    assert widest <= tab.evaluate("innerWidth")


def test_headings_do_not_overlap_what_follows(tab: Any) -> None:
    scroll_to_the_end(tab)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('main section')].map(each => "
        "[each.getBoundingClientRect().top, each.getBoundingClientRect().bottom])"
    )
    for (_, end), (start, _) in itertools.pairwise(boxes):
        assert start >= end


def column(tab: Any, number: int) -> list[str]:
    cells = tab.query_selector_all(f"table.sortable tbody td:nth-child({number})")
    return [cell.inner_text() for cell in cells]


def test_a_click_sorts_the_trials_and_another_turns_them_round(tab: Any) -> None:
    before = column(tab, 4)
    for _ in range(2):
        tab.click("table.sortable th:nth-child(4) button")
        values = [float(text) for text in column(tab, 4)]
        rising = tab.get_attribute("table.sortable th:nth-child(4)", "aria-sort") == "ascending"
        assert values == sorted(values, reverse=not rising)
    assert sorted(column(tab, 4)) == sorted(before)
    tab.click("table.sortable th:nth-child(2) button")
    assert column(tab, 2) == sorted(column(tab, 2))


def test_a_click_on_a_section_goes_there(tab: Any) -> None:
    tab.click("nav a[href='#trials']")
    tab.wait_for_function("document.getElementById('trials').getBoundingClientRect().top < 60")


@pytest.mark.parametrize("image_format", ["png", "svg"])
def test_every_figure_as_a_picture(page: Path, tmp_path: Path, image_format: str) -> None:
    study = load_study(page.parent)
    figures = build_figures(study, study.best_trial())
    folder = tmp_path / "new" / "pictures"
    write_pictures(figures, folder, image_format)
    assert {path.name for path in folder.iterdir()} == {f"{f.name}.{image_format}" for f in figures}
    for figure in figures:
        content = (folder / f"{figure.name}.{image_format}").read_bytes()
        if image_format == "png":
            assert content.startswith(b"\x89PNG")
        else:
            # The page prints the title above the figure; a picture carries it.
            assert figure.title.encode() in content
