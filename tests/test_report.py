from __future__ import annotations

import base64
import html.parser
import importlib.util
import json
import random
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.results.cost import study_cost
from csg_ray.results.report.page import build_report, render_page
from csg_ray.results.report.pictures import check_renderer, write_pictures
from csg_ray.results.report.plots import Figure, build_figures, pareto_front
from csg_ray.results.study import Study, Trial, load_study
from csg_ray.search_space import load_search_space, parse_search_space
from csg_ray.storage.paths import StoragePath
from written_study import SPACE, write_study

MakeStudy = Callable[..., Path]
SPACES = Path(__file__).parents[1] / "search_spaces"
ACCURACY, ENERGY = "target_val/mean_class_accuracy", "target_val/hse"
PUBLISHED = ("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)])
STOPPED = ("stopped", [(0.25, 0.1, 0.99)])
WINNER = ("completed", [(0.3, 0.8, 0.7), (0.8, 0.2, 0.8), (0.712, 0.40, 0.90)])
COOLEST = ("completed", [(0.3, 0.8, 0.7), (0.5, 0.5, 0.8), (0.65, 0.30, 0.99)])
DIVERGED = ("diverged", [(0.35, 0.8, 0.7), (0.0, 18.0, 0.0)])
TRIALS = (PUBLISHED, STOPPED, WINNER, COOLEST, DIVERGED)


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return load_study(make_study(*TRIALS))


def figures_of(study: Study) -> dict[str, Figure]:
    return {figure.name: figure for figure in build_figures(study, study.best_trial("objective"))}


def trace(figure: Figure, name: str) -> Any:
    (found,) = [each for each in figure.plot.data if each.name == name]
    return found


def numbers(values: Any) -> list[Any]:
    """The values of an axis, whether they are kept as a list or packed."""
    if isinstance(values, dict):
        raw = base64.b64decode(values["bdata"])
        kind = {"f8": "d", "i1": "b", "i2": "h", "i4": "i"}[values["dtype"]]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw))
    return list(values)


# figures


def test_the_front_holds_the_points_that_no_other_point_beats() -> None:
    draws = random.Random(0)
    for _ in range(50):
        points = [(draws.randrange(8) / 4, draws.randrange(8) / 4) for _ in range(12)]
        beaten = {
            i
            for i, (energy, score) in enumerate(points)
            for other, better in points
            if other <= energy and better >= score and (other, better) != (energy, score)
        }
        expected = {point for i, point in enumerate(points) if i not in beaten}
        front = [points[i] for i in pareto_front(points)]
        assert set(front) == expected
        assert front == sorted(expected)  # each once
    assert pareto_front([]) == []


def test_energy_against_accuracy_shows_the_completed_trials(study: Study) -> None:
    figure = figures_of(study)["energy_and_score"]
    shown = trace(figure, "completed trials")
    assert list(zip(shown.x, shown.y, strict=True)) == [(0.7, 0.6), (0.4, 0.712), (0.3, 0.65)]
    front = trace(figure, "Pareto front")
    assert list(zip(front.x, front.y, strict=True)) == [(0.3, 0.65), (0.4, 0.712)]
    assert (*trace(figure, "best (0003)").x, *trace(figure, "best (0003)").y) == (0.4, 0.712)
    published = trace(figure, "published settings (0001)")
    assert (*published.x, *published.y) == (0.7, 0.6)
    assert "Fewer than four completed trials" in figure.caption


def test_the_correlation_stands_below_with_its_interval(make_study: MakeStudy) -> None:
    study = load_study(make_study(*TRIALS, ("completed", [(0.1, 0.9, 0.8), (0.5, 0.2, 0.9)])))
    assert str(study.energy_and_accuracy()) in figures_of(study)["energy_and_score"].caption


def test_learning_curves_have_every_epoch_and_where_asha_cut(study: Study) -> None:
    figure = figures_of(study)["learning_curves"]
    curves = trace(figure, "completed (3)")
    expected: list[float | None] = []
    for trial in study.trials:
        if trial.state == "completed":
            expected += [line[ACCURACY] for line in trial.results] + [None]
    assert list(curves.y) == expected
    assert list(curves.x) == [1, 2, 3, None] * 3
    cut = trace(figure, "cut by ASHA")
    assert (list(cut.x), list(cut.y), list(cut.text)) == ([1], [0.25], ["0002"])
    # The worst values that a diverged epoch reports are not measurements.
    assert list(trace(figure, "diverged (1)").y) == [0.35, None]
    assert "cut 1 of 5 trials" in figure.caption


def test_the_cost_of_each_trial_and_in_total(study: Study) -> None:
    """Each written epoch took a minute."""
    minutes: dict[str, float] = {}
    for bars in figures_of(study)["cost"].plot.data:
        minutes |= dict(zip(bars.x, bars.y, strict=True))
    assert minutes == {"0001": 3, "0002": 1, "0003": 3, "0004": 3, "0005": 2}
    resources = study.space.resources.model_copy(
        update={"workers_per_trial": 2, "cpus_per_worker": 4, "gpus_per_worker": 0.5}
    )
    cost = study_cost(replace(study, space=replace(study.space, resources=resources)))
    assert cost is not None
    assert cost.training_hours == pytest.approx(12 / 60)
    assert cost.cpu_hours == pytest.approx(12 / 60 * 8)
    assert cost.gpu_hours == pytest.approx(12 / 60)
    assert (cost.epochs, cost.epochs_at_full_budget) == (12, 15)


def without_seconds(trial: Trial) -> Trial:
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in trial.results]
    return replace(trial, results=tuple(lines))


def test_a_study_without_times_has_no_cost_and_is_reported_all_the_same(study: Study) -> None:
    old = replace(study, trials=tuple(without_seconds(trial) for trial in study.trials))
    assert study_cost(old) is None
    assert "cost" not in figures_of(old)
    assert "CPU h" not in render_page(build_report(old))


def test_slices_show_each_setting_over_its_whole_range(study: Study) -> None:
    figures = figures_of(study)
    weight = figures["slice_method.loss_weight"].plot
    assert numbers(weight.data[0].x) == pytest.approx([0.1, 0.3, 0.4])
    assert numbers(weight.data[0].y) == [0.6, 0.712, 0.65]
    low, high = weight.layout.xaxis.range  # in decades: 0.01 to 10
    assert low < -2 < 1 < high
    star = trace(figures["slice_method.loss_weight"], "best (0003)")
    assert (star.x[0], star.y[0]) == (pytest.approx(0.3), 0.712)
    assert {"slice_augment.magnitude", "history", "parallel_coordinates"} <= figures.keys()
    assert "importances" not in figures  # of three trials nothing can be told


def varied(space_file: str, count: int) -> Study:
    """A study of completed trials, drawn at random from a shipped space."""
    import optuna

    from csg_ray.scale.suggestions import Suggestions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_search_space(SPACES / space_file, {"search.sampler": "random"})
    suggestions = Suggestions(space)
    draws = random.Random(1)
    trials = []
    for number in range(1, count + 1):
        suggestion = suggestions.ask()
        assert suggestion is not None
        last = {"epoch": 9, space.objectives[0].metric: draws.random(), ENERGY: draws.random()}
        last |= {f"source_val/{space.score}": 0.9, f"target_val/{space.score}": draws.random()}
        trials.append(
            Trial(
                f"{number:04d}", suggestion.params, "sampler", "completed", "", (last,), Path("x")
            )
        )
    return Study(Path("studies/x"), space, {}, (), tuple(trials))


def test_importances_name_every_setting_and_sum_to_one() -> None:
    figure = figures_of(varied("digits.yaml", 20))["importances"]
    (bars,) = figure.plot.data
    assert sum(numbers(bars.x)) == pytest.approx(1, abs=1e-6)
    assert {str(name) for name in bars.y} == {
        "method.loss_weight",
        "method.temperature",
        "augment.magnitude",
        "method.stages",
        "method.ema_momentum",
    }


def test_choices_stand_in_the_order_of_the_file_and_the_best_among_them() -> None:
    study = varied("digits.yaml", 20)
    figures = {f.name: f for f in build_figures(study, study.trials[0])}
    stages = figures["slice_method.stages"]
    assert list(stages.plot.layout.xaxis.categoryarray) == ["4", "3,4", "2,3,4", "1,2,3,4"]
    drawn = zip(stages.plot.data[0].x, numbers(stages.plot.data[0].y), strict=True)
    assert sorted(drawn) == sorted(
        (t.params["method.stages"], t.last[ACCURACY]) for t in study.trials
    )
    assert list(trace(stages, "best (0001)").x) == [study.trials[0].params["method.stages"]]


def test_settings_of_branches_have_slices_of_their_own() -> None:
    """`methods.yaml` searches the method, and with each its own strength."""
    study = varied("methods.yaml", 30)
    names = {name for name in figures_of(study) if name.startswith("slice_")}
    assert "slice_method.name" in names
    branches = {
        t.params["method.name"] for t in study.trials if len(t.params) > len(study.space.space)
    }
    assert all(any(branch in name for name in names) for branch in branches)
    # The best is marked in the slices of its own branch alone.
    best = next(trial for trial in study.trials if trial.params["method.name"] in branches)
    marked = {
        figure.name
        for figure in build_figures(study, best)
        if figure.name.startswith("slice_") and any("best" in str(t.name) for t in figure.plot.data)
    }
    own = {name for name in names if best.params["method.name"] in name}
    assert own
    assert marked == own | {"slice_method.name", "slice_augment.magnitude"}
    render_page(build_report(study))


# the page


class Outline(html.parser.HTMLParser):
    """What a browser would find in a page: elements, text, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self._script = ""
        self._scripts: dict[str, str] = {}
        self.feed(page)
        self.close()
        self.data = {name: json.loads(text) for name, text in self._scripts.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.loads += [value for name in ("src", "href") if (value := found.get(name)) is not None]
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self._script = str(found.get("id") or "code") if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script.startswith("data-"):
            self._scripts[self._script] = self._scripts.get(self._script, "") + data
        elif self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "


def outline(study: Study) -> Outline:
    return Outline(render_page(build_report(study)))


def test_the_page_loads_nothing_and_its_links_lead_somewhere(study: Study) -> None:
    page = outline(study)
    inner = {link.removeprefix("#") for link in page.loads if link.startswith("#")}
    assert {"choice", "figures", "trials", "provenance"} <= inner <= set(page.ids)
    assert [link for link in page.loads if not link.startswith("#")] == ["data:,"]
    assert len(page.ids) == len(set(page.ids))
    assert page.open == []
    assert page.data.keys() == {f"data-{name}" for name in figures_of(study)}


def test_what_the_page_says(study: Study) -> None:
    text = " ".join(outline(study).text.split())
    assert "accuracy of the best trial, 0003; selected with target labels" in text
    assert "accuracy of the published settings, trial 0001 (HSE 0.700)" in text
    assert "Against the published settings: accuracy +11.2 points, HSE -0.300." in text
    assert "12 min of training: 0.2 CPU h; 12 epochs of 15 without a scheduler" in text
    assert "trials: 3 completed, 1 stopped, 1 diverged" in text
    assert "of equal trials the earliest is picked" in text
    assert "selected with target labels" in text
    assert "Selection used target labels" in text


def test_the_rows_of_the_picks_and_of_the_trials(study: Study) -> None:
    page = render_page(build_report(study))
    rows = [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
        for row in re.findall(r"<tr.*?>(.*?)</tr>", page, re.S)
    ]
    assert [
        "target_val",
        "accuracy on target_val",
        "yes",
        "0003",
        "0.712",
        "0.400",
        "0.900",
        "sealed",
    ] in rows
    assert [
        "source_val",
        "accuracy on source_val",
        "by the search only",
        "0004",
        "0.650",
        "0.300",
        "0.990",
        "sealed",
    ] in rows
    trials = [row for row in rows if row and row[0][:3] == "000"]
    assert [row[0] for row in trials] == ["0003", "0004", "0001 (warm start)", "0002", "0005"]
    assert trials[0] == ["0003", "completed", "3", "0.712", "0.400", "0.900", "3 min", "0.3", "8"]


def test_text_of_a_study_is_text_and_no_markup(make_study: MakeStudy) -> None:
    """Reasons of failures come from anywhere, and may hold anything."""
    directory = make_study(*TRIALS)
    bad = "</script><script>alert(1)</script><img src=x>"
    state = directory / "trials" / "0005" / "state.json"
    state.write_text(json.dumps({"state": "failed", "reason": bad}))
    mapping = {**SPACE, "base": {**SPACE["base"], "model.weights": bad}}  # type: ignore[dict-item]
    study = replace(load_study(directory), space=parse_search_space(mapping))
    page = outline(study)
    assert "alert(1)" in page.text
    assert page.loads.count("x") == 0
    assert page.data  # every embedded figure still parses


def test_a_name_of_a_setting_cannot_end_a_script(study: Study) -> None:
    trials = tuple(replace(t, id=f"{t.id}</script>") for t in study.trials)
    page = outline(replace(study, trials=trials))
    assert page.open == []
    assert "</script>" in json.dumps(page.data)


@pytest.mark.parametrize(
    "trials",
    [
        [STOPPED],
        [PUBLISHED],
        [("failed", [])],
        [("unfinished", [(0.2, 0.9, 0.8)])],
        [STOPPED, ("diverged", [(0.0, 18.0, 0.0)]), ("unfinished", [])],
    ],
)
def test_studies_with_hardly_anything_in_them(make_study: MakeStudy, trials: Sequence[Any]) -> None:
    study = load_study(make_study(*trials))
    page = outline(study)
    assert page.open == []
    said = "No trial has completed, so none can win." in page.text
    assert said is not any(state == "completed" for state, _ in trials)


def test_several_objectives(make_study: MakeStudy) -> None:
    goals = [{"metric": ACCURACY, "mode": "max"}, {"metric": ENERGY, "mode": "min"}]
    search = {"metric": None, "mode": None, "objectives": goals, "sampler": "nsga2"}
    study = load_study(make_study(*TRIALS, search=search))
    assert {"energy_and_score", "learning_curves", "history"} <= figures_of(study).keys()
    assert outline(study).open == []


def test_segmentation_is_reported_by_iou() -> None:
    study = varied("digit_scenes.yaml", 5)
    text = outline(study).text
    assert "mIoU of the best trial" in text
    assert "mIoU on target_val" in text


def test_the_published_protocol_keeps_no_test_set(tmp_path: Path) -> None:
    study = varied("visda17.yaml", 5)
    mapping = study.space.to_mapping()
    mapping["base"]["data.protocol"] = "published"
    published = replace(study, space=parse_search_space(mapping), directory=tmp_path)
    page = outline(published)
    assert "The published protocol keeps no test set." in page.text
    assert "csg-ray evaluate" not in page.text
    assert "by the search only sealed" not in " ".join(page.text.split())
    assert "target_test" not in page.text.partition("Three ways")[2].partition("Figures")[0]


def test_reruns_are_shown_with_their_winner(make_study: MakeStudy) -> None:
    directory = make_study(*TRIALS)
    better = ("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.66, 0.70, 0.95)])
    write_study(directory / "reruns", PUBLISHED, better, search={"repeats": 3})
    # As written they have the settings of 0001 and 0002, of which the second was cut.
    text = " ".join(outline(load_study(directory)).text.split())
    assert "0001, the winner completed 0.600 0.600" in text


# the command


def test_the_page_goes_into_the_study_and_replaces_an_older_one(
    make_study_at: Callable[..., StoragePath], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_study_at(*TRIALS)
    for _ in range(2):
        assert main(["report", str(directory)]) == 0
    out = capsys.readouterr().out
    assert f"written to {directory / 'report.html'}:" in out
    assert "caution: Selection used target labels" in out
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert Outline(page).open == []
    assert not (directory / "test_ledger.jsonl").exists()


def test_a_report_elsewhere(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(study.directory), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert not (study.directory / "report.html").exists()


@pytest.mark.parametrize("words", [["--out", "there"], ["--images", "there"]])
def test_what_exists_is_not_overwritten(
    study: Study,
    tmp_path: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(["report", str(study.directory), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there exists and is not overwritten" in captured.err
    assert not (study.directory / "report.html").exists()


def test_a_study_without_a_trial_has_no_report(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(make_study())]) == 2
    assert "has no trial yet, so there is nothing to report" in capsys.readouterr().err


def test_what_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a study: it holds no study.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["kaleido", "browser"])
def test_pictures_without_what_draws_them(
    study: Study,
    tmp_path: Path,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence, before anything is written."""
    found = importlib.util.find_spec
    if missing == "kaleido":
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "kaleido" else found(name)
        )
    else:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    words = ["report", str(study.directory), "--images", str(tmp_path / "pictures")]
    assert main(words) == 2
    error = capsys.readouterr().err
    wanted = {"kaleido": "pip install 'csg-ray[images]'", "browser": "apt install chromium"}
    assert wanted[missing] in error
    assert error.count("\n") == 1
    assert not (study.directory / "report.html").exists()


def test_pictures_are_all_there_or_none(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plotly.io

    def fail(fig: Any, file: list[Path], **options: Any) -> None:
        file[0].write_bytes(b"half")
        raise RuntimeError("the browser died")

    monkeypatch.setattr(plotly.io, "write_images", fail)
    with pytest.raises(RuntimeError, match="the browser died"):
        write_pictures(build_figures(study, None), tmp_path / "pictures", "png")
    assert list(tmp_path.glob("*pictures*")) == []


def test_the_renderer_is_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/x" if name == "google-chrome" else None)
    check_renderer()
