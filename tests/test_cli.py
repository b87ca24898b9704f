from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.results.cost import Meter, describe_seconds
from csg_ray.results.progress import Progress, TrialUpdate
from csg_ray.search_space import Changes, SearchSpace

MakeStudy = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
PUBLISHED = ("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)])
STOPPED = ("stopped", [(0.9, 0.1, 0.99)])
WINNER = ("completed", [(0.3, 0.8, 0.7), (0.8, 0.2, 0.8), (0.712, 0.40, 0.90)])
COOLEST = ("completed", [(0.3, 0.8, 0.7), (0.5, 0.5, 0.8), (0.65, 0.30, 0.99)])
MIDDLING = ("completed", [(0.3, 0.8, 0.7), (0.5, 0.5, 0.8), (0.61, 0.50, 0.85)])
TRIALS = (PUBLISHED, STOPPED, WINNER, COOLEST, MIDDLING)
SPACE = """
study: digits
base: {data.name: digits, method.name: csg, train.epochs: 3}
space: {method.loss_weight: {loguniform: [0.01, 10.0]}}
search: {metric: target_val/mean_class_accuracy, mode: max, num_trials: 4}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])


@pytest.fixture
def study(make_study: MakeStudy) -> Path:
    return make_study(*TRIALS).relative_to(Path.cwd())


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return Path("space.yaml")


def refusal(capsys: Capture, *words: str | Path) -> str:
    """The one sentence that a refused command prints; nothing else may be printed."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("csg-ray: ")
    return captured.err.removeprefix("csg-ray: ").rstrip("\n")


def words_of(text: str) -> list[list[str]]:
    return [line.replace("│", " ").replace("┃", " ").split() for line in text.splitlines()]


# best


def test_best_lists_the_completed_trials_best_first(study: Path, capsys: Capture) -> None:
    assert main(["best", str(study)]) == 0

    out = capsys.readouterr().out
    rows = [words for words in words_of(out) if words and words[0][:3] == "000"]
    assert rows == [
        ["0003", "completed", "3", "0.712", "0.400", "0.900", "3", "min", "0.3", "8"],
        ["0004", "completed", "3", "0.650", "0.300", "0.990", "3", "min", "0.4", "9"],
        ["0005", "completed", "3", "0.610", "0.500", "0.850", "3", "min", "0.5", "10"],
        [
            "0001",
            "(warm",
            "start)",
            *rows[0][1:3],
            "0.600",
            "0.700",
            "0.950",
            "3",
            "min",
            "0.1",
            "6",
        ],
    ]
    assert "loss_weight" in out
    assert "selected with target labels" in out
    # Energy ranks 4 2 1 3 against accuracy ranks 1 4 3 2: rho = 1 - 6 * (9 + 4 + 4 + 1) / 60.
    assert "HSE and accuracy over 4 completed trials: Spearman -0.80 (95 % interval" in out
    # Four trials of three epochs of a minute, and one of one.
    assert "\nCost: 13 min of training, 0.22 CPU h; 13 epochs of 15 without a scheduler.\n" in out
    assert "next: csg-ray export studies/digits digits.yaml --by target_val\n" in out


def test_best_by_another_rule(study: Path, capsys: Capture) -> None:
    assert main(["best", str(study), "--by", "hse", "--top", "1"]) == 0

    rows = [words[0] for words in words_of(capsys.readouterr().out) if words]
    assert [row for row in rows if row[:3] == "000"] == ["0004"]


def test_best_without_a_winner_says_why(make_study: MakeStudy, capsys: Capture) -> None:
    make_study(STOPPED, STOPPED, ("failed", []))

    assert refusal(capsys, "best", "studies/digits") == (
        "no trial of study studies/digits has completed (1 failed, 2 stopped), so none can win; "
        "trial 0003 failed: was failed; "
        "continue it with: csg-ray restore studies/digits --more 4"
    )


def test_best_without_a_winner_names_the_first_failure_and_its_file(
    make_study: MakeStudy, capsys: Capture
) -> None:
    trials = make_study(STOPPED, ("failed", []), ("failed", [])) / "trials"
    ending = {"state": "failed", "reason": "RuntimeError: no\n kernel"}
    (trials / "0002" / "state.json").write_text(json.dumps(ending))
    (trials / "0002" / "error.txt").write_text("Traceback ...")

    assert refusal(capsys, "best", "studies/digits") == (
        "no trial of study studies/digits has completed (2 failed, 1 stopped), so none can win; "
        "trial 0002 failed: RuntimeError: no kernel (see studies/digits/trials/0002/error.txt); "
        "continue it with: csg-ray restore studies/digits --more 4"
    )


def test_best_without_a_failure_names_none(make_study: MakeStudy, capsys: Capture) -> None:
    make_study(STOPPED)

    assert refusal(capsys, "best", "studies/digits").endswith(
        "(1 stopped), so none can win; continue it with: csg-ray restore studies/digits --more 4"
    )


def test_best_of_an_empty_study(make_study: MakeStudy, capsys: Capture) -> None:
    make_study()

    assert refusal(capsys, "best", "studies/digits") == (
        "study studies/digits has no trial yet; continue it with: csg-ray restore studies/digits"
    )


@pytest.mark.parametrize("name", ["best", "evaluate", "restore"])
def test_what_is_no_study_is_refused(name: str, capsys: Capture) -> None:
    sentence = refusal(capsys, name, "nowhere")

    assert sentence == "nowhere is not a study: it does not exist"
    assert not Path("nowhere").exists()


# export


def test_export_writes_the_winner(study: Path, capsys: Capture) -> None:
    assert main(["export", str(study), "out.yaml"]) == 0

    assert capsys.readouterr().out == (
        "trial 0003 of studies/digits (by accuracy on target_val, selected with target labels) "
        "written to out.yaml\nnext: csg-ray train out.yaml\n"
    )
    content = yaml.safe_load(Path("out.yaml").read_text())
    assert content["provenance"]["trial"] == "0003"
    assert content["augment"]["magnitude"] == 8


def test_export_by_id_and_by_rule(study: Path) -> None:
    assert main(["export", str(study), "two.yaml", "--trial", "2"]) == 0
    assert main(["export", str(study), "cool.yaml", "--by", "hse"]) == 0

    two, cool = (
        yaml.safe_load(Path(name).read_text())["provenance"] for name in ("two.yaml", "cool.yaml")
    )
    assert (two["trial"], two["selection"]) == ("0002", "chosen by id")
    assert (cool["trial"], cool["selection"]) == ("0004", "hse")


def test_export_refuses(study: Path, capsys: Capture) -> None:
    Path("there.yaml").write_text("mine")

    assert refusal(capsys, "export", study, "out.yaml", "--trial", "9") == (
        "study studies/digits has no trial '9'; it holds 0001 to 0005"
    )
    assert refusal(capsys, "export", study, "there.yaml") == (
        "there.yaml exists and is not overwritten; choose another name or remove it"
    )
    assert refusal(capsys, "export", study, "no/out.yaml") == (
        "no/out.yaml cannot be written: the folder no does not exist"
    )
    assert refusal(capsys, "export", study, "out.yaml", "--trial", "1", "--by", "hse") == (
        "--trial and --by exclude each other; give one"
    )
    assert not Path("out.yaml").exists()
    assert Path("there.yaml").read_text() == "mine"


# what was searched for is none of the three rules


@pytest.fixture
def by_source_energy(make_study: MakeStudy) -> Path:
    """Trials 0001 and 0002, of which 0001 has the lower source_val/hse and less accuracy."""
    search = {"metric": "source_val/hse", "mode": "min"}
    directory = make_study(PUBLISHED, WINNER, search=search).relative_to(Path.cwd())
    for number, energy in ((1, 0.125), (2, 0.25)):
        results = directory / "trials" / f"{number:04d}" / "result.json"
        line = json.loads(results.read_text().splitlines()[-1]) | {"source_val/hse": energy}
        results.write_text(json.dumps(line) + "\n")
    return directory


def test_best_ranks_by_the_objective(by_source_energy: Path, capsys: Capture) -> None:
    assert main(["best", str(by_source_energy)]) == 0

    out = capsys.readouterr().out
    rows = [words for words in words_of(out) if words and words[0][:3] == "000"]
    scores = [words[words.index("3") + 1 :][:4] for words in rows]
    assert scores == [["0.600", "0.700", "0.950", "0.125"], ["0.712", "0.400", "0.900", "0.250"]]
    assert "by lowest source_val/hse; the last epoch counts" in out
    assert "\nselected with target labels\n" not in out
    assert out.endswith("next: csg-ray export studies/digits digits.yaml\n")

    assert main(["best", str(by_source_energy), "--by", "target_val", "--top", "1"]) == 0
    assert "0002" in capsys.readouterr().out


def test_export_takes_the_winner_of_the_objective(by_source_energy: Path, capsys: Capture) -> None:
    assert main(["export", str(by_source_energy), "out.yaml"]) == 0

    sentence = "trial 0001 of studies/digits (by lowest source_val/hse) written to out.yaml\n"
    assert capsys.readouterr().out.startswith(sentence)
    origin = yaml.safe_load(Path("out.yaml").read_text())["provenance"]
    assert (origin["trial"], origin["selection"]) == ("0001", "objective")
    assert origin["objective"] == "lowest source_val/hse"
    assert origin["selected with target labels"] is False


def test_a_search_ends_with_the_winner_of_its_objective(
    scale: SimpleNamespace, by_source_energy: Path, capsys: Capture
) -> None:
    assert main(["restore", str(by_source_energy)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "Best trial: 0001 of studies/digits (by lowest source_val/hse)" in lines
    assert "  source_val/hse: 0.125" in lines


# search, restore, check: the room that needs Ray is replaced


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch, make_study: MakeStudy) -> SimpleNamespace:
    """Stands in for `csg_ray.scale`: `ran` holds the calls, `ending` may raise."""
    room = SimpleNamespace(ran=[], ending=lambda: None)

    def run_study(
        space: SearchSpace, directory: Path, progress: Progress, verbose: bool, *_: object
    ) -> None:
        made = make_study(*TRIALS)
        if made != directory.absolute():
            directory.parent.mkdir(parents=True, exist_ok=True)
            made.rename(directory)
        room.ran.append((space, directory, verbose))
        progress.study_started(
            study=space.study,
            directory=directory,
            num_trials=space.search.num_trials,
            epochs=3,
            metric="target_val/mean_class_accuracy",
            mode="max",
            meter=Meter(),
        )
        progress.study_finished()
        room.ending()

    def restore_study(
        directory: Path, more: int, progress: Progress, verbose: bool, *_: object
    ) -> None:
        room.ran.append((directory, more, verbose))
        room.ending()

    tuner = SimpleNamespace(run_study=run_study, restore_study=restore_study)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    # Digits take seconds to render.
    monkeypatch.setattr("csg_ray.data.load.load_splits", lambda config: None)
    return room


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "space.yaml"], "stopped before anything was written"),
        (
            ["restore", "studies/digits"],
            "stopped; continue with: csg-ray restore studies/digits",
        ),
    ],
)
def test_ctrl_c_while_images_are_decoded_says_how_to_go_on(
    scale: SimpleNamespace,
    space_file: Path,
    study: Path,
    words: list[str],
    said: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("csg_ray.data.load.load_splits", stop)

    assert main(words) == 130

    assert capsys.readouterr().err == f"csg-ray: {said}\n"
    assert scale.ran == []


def test_search_ends_with_the_winner_and_the_next_commands(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    assert main(["search", str(space_file)]) == 0

    out = capsys.readouterr().out
    assert out.splitlines() == [
        "checking data and weights, then starting Ray ...",
        "study digits in studies/digits: 4 trials of up to 3 epochs",
        "",
        "Best trial: 0003 of studies/digits (by accuracy on target_val, "
        "selected with target labels)",
        "  accuracy 0.712, HSE 0.400 on target_val, epoch 3",
        "  method.loss_weight: 0.3",
        "  augment.magnitude: 8",
        "Against the published settings, trial 0001 "
        "(accuracy 0.600, HSE 0.700 on target_val, epoch 3): accuracy +11.2 points, HSE -0.300.",
        out.splitlines()[8],
        "Cost: 13 min of training, 0.22 CPU h; 13 epochs of 15 without a scheduler.",
        "",
        "Next:",
        "  csg-ray best studies/digits",
        "  csg-ray report studies/digits",
        "  csg-ray export studies/digits digits.yaml",
        "  csg-ray evaluate studies/digits",
    ]
    assert out.splitlines()[8].startswith("HSE and accuracy over 4 completed trials: Spearman -0.8")


def test_search_takes_trials_and_settings(scale: SimpleNamespace, space_file: Path) -> None:
    words = ["--trials", "7", "--set", "train.epochs=5", "--set", "train.learning_rate=1e-3"]

    assert main(["search", str(space_file), *words, "--study", "deep/er", "--verbose"]) == 0

    [(space, directory, verbose)] = scale.ran
    assert space.search.num_trials == 7
    assert space.base["train.epochs"] == 5
    assert space.base["train.learning_rate"] == 1e-3
    assert (directory, verbose) == (Path("deep/er"), True)


def test_a_second_search_takes_the_next_free_name(scale: SimpleNamespace, space_file: Path) -> None:
    Path("studies/digits").mkdir(parents=True)
    Path("studies/digits-2").mkdir()
    scale.ending = lambda: pytest.fail("not reached")

    def stop(space: SearchSpace, directory: Path, *_: object) -> None:
        assert directory == Path("studies/digits-3")
        raise UserError("seen")

    sys.modules["csg_ray.scale.tuner"].run_study = stop  # type: ignore[attr-defined]
    assert main(["search", str(space_file)]) == 2


def lose_name(times: int) -> Callable[..., None]:
    """A `run_study` that finds its first directories taken by other searches meanwhile."""
    real = sys.modules["csg_ray.scale.tuner"].run_study
    left = [times]

    def run_study(
        space: SearchSpace, directory: Path, progress: Progress, verbose: bool, *_: object
    ) -> None:
        if left[0]:
            left[0] -= 1
            directory.mkdir(parents=True)
            raise FileExistsError(errno.EEXIST, "it exists", str(directory))
        real(space, directory, progress, verbose)

    return run_study


def test_a_search_that_loses_its_name_to_another_takes_the_next(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    sys.modules["csg_ray.scale.tuner"].run_study = lose_name(times=2)  # type: ignore[attr-defined]

    assert main(["search", str(space_file), "--set", "study=other"]) == 0

    assert [directory for _, directory, _ in scale.ran] == [Path("studies/other-3")]
    assert "Best trial: 0003 of studies/other-3" in capsys.readouterr().out


def test_a_search_that_loses_the_name_it_was_given_is_refused(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    sys.modules["csg_ray.scale.tuner"].run_study = lose_name(times=1)  # type: ignore[attr-defined]

    assert main(["search", str(space_file), "--study", "mine"]) == 2

    assert capsys.readouterr().err == (
        "csg-ray: mine exists; continue it with 'csg-ray restore mine', "
        "or choose another name with --study\n"
    )
    assert scale.ran == []


def test_a_file_in_the_way_inside_a_study_starts_no_second_one(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    def stumble() -> None:
        raise FileExistsError(errno.EEXIST, "File exists", "studies/digits/trials")

    scale.ending = stumble

    assert main(["search", str(space_file)]) == 2

    assert capsys.readouterr().err == (
        "csg-ray: studies/digits/trials cannot be used: file exists; choose another name or place\n"
    )
    assert len(scale.ran) == 1


def test_search_refuses_an_existing_study(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    Path("old").mkdir()

    assert refusal(capsys, "search", space_file, "--study", "old") == (
        "old exists; continue it with 'csg-ray restore old', or choose another name with --study"
    )
    assert scale.ran == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--set", "train.epochs"],
            "--set train.epochs: write path=value, such as train.epochs=3",
        ),
        (["--set", "=5"], "--set =5: write path=value, such as train.epochs=3"),
        (["--set", "seed=1", "--set", "seed=2"], "--set seed is given twice; keep one"),
    ],
)
def test_malformed_settings(
    scale: SimpleNamespace, space_file: Path, capsys: Capture, words: list[str], sentence: str
) -> None:
    assert refusal(capsys, "search", space_file, *words) == sentence
    assert scale.ran == []


def test_a_misspelt_setting_and_a_missing_file_are_one_sentence(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    assert "did you mean 'train.epochs'?" in refusal(
        capsys, "search", space_file, "--set", "train.epoch=5"
    )
    assert "none.yaml" in refusal(capsys, "search", "none.yaml")
    assert sorted(path.name for path in Path().iterdir()) == ["space.yaml"]


@pytest.mark.parametrize("name", ["search", "restore"])
def test_ctrl_c_says_how_to_go_on(
    scale: SimpleNamespace, space_file: Path, capsys: Capture, name: str, make_study: MakeStudy
) -> None:
    scale.ending = interrupt
    target = space_file
    if name == "restore":
        target = make_study(PUBLISHED).relative_to(Path.cwd())

    assert main([name, str(target)]) == 130

    expected = "csg-ray: stopped; continue with: csg-ray restore studies/digits\n"
    assert capsys.readouterr().err == expected


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("SIGTERM was ignored")


def exit_as_ray_does() -> None:
    sys.exit(int(signal.SIGTERM))


def swallow_as_ray_does() -> None:
    try:
        terminate()
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


@pytest.mark.parametrize("end", [terminate, exit_as_ray_does, swallow_as_ray_does])
@pytest.mark.parametrize("name", ["search", "restore"])
def test_sigterm_says_how_to_go_on(
    scale: SimpleNamespace,
    space_file: Path,
    capsys: Capture,
    name: str,
    make_study: MakeStudy,
    end: Callable[[], None],
) -> None:
    target = space_file
    if name == "restore":
        target = make_study(PUBLISHED).relative_to(Path.cwd())
    scale.ending = end
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main([name, str(target)]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)

    expected = "csg-ray: stopped; continue with: csg-ray restore studies/digits\n"
    assert capsys.readouterr().err == expected


def test_a_second_sigterm_does_not_break_the_cleaning_up(
    scale: SimpleNamespace, space_file: Path
) -> None:
    cleaned = []

    def end() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    scale.ending = end

    assert main(["search", str(space_file)]) == 143
    assert cleaned == [True]


def test_other_exits_keep_their_code(scale: SimpleNamespace, space_file: Path) -> None:
    scale.ending = lambda: sys.exit(7)

    assert main(["search", str(space_file)]) == 7


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "studies/digits/trials/0001/x")


def test_a_full_disk_says_how_to_go_on(
    scale: SimpleNamespace, space_file: Path, capsys: Capture
) -> None:
    scale.ending = fill_the_disk

    assert main(["search", str(space_file)]) == 2

    assert capsys.readouterr().err == (
        "csg-ray: no space left on the disk of studies/digits; free some, "
        "then continue with: csg-ray restore studies/digits\n"
    )


def test_restore_passes_more_on(scale: SimpleNamespace, study: Path, capsys: Capture) -> None:
    assert main(["restore", str(study), "--more", "3"]) == 0

    assert scale.ran == [(study, Changes(more=3), False)]
    assert "Best trial: 0003" in capsys.readouterr().out


def test_the_published_settings_may_win_or_not_complete(
    scale: SimpleNamespace, make_study: MakeStudy, capsys: Capture
) -> None:
    directory = make_study(WINNER, PUBLISHED)
    main(["restore", str(directory)])
    assert "The published settings, trial 0001, won: no trial beat them." in capsys.readouterr().out

    (directory / "trials" / "0001" / "state.json").write_text('{"state": "stopped"}')
    main(["restore", str(directory)])
    assert (
        "The published settings, trial 0001, did not complete (stopped; accuracy 0.712, "
        "HSE 0.400 on target_val, epoch 3)."
    ) in capsys.readouterr().out


def test_check_shows_the_plan_and_writes_nothing(
    space_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = SimpleNamespace(
        trials=4,
        epochs=3,
        concurrent=2,
        processes=2,
        fuse=1,
        workers=1,
        cpus_per_worker=1,
        gpus_per_worker=0.25,
        cluster_cpus=2.0,
        cluster_gpus=1.0,
        checkpoint_bytes_per_trial=12_345_678,
        disk_bytes=4 * 12_345_678,
    )
    resources = SimpleNamespace(plan=lambda *_: layout, check_models=lambda _: None)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.resources", resources)

    assert main(["check", str(space_file)]) == 0

    out = capsys.readouterr().out
    assert "trials  4 of up to 3 epochs, 0 of them given in the file\n" in out
    assert "at a time  2 trials, each 1 worker(s) of 1 CPU and 0.25 GPU\n" in out
    assert (
        "disk  49.4 MB at most, 12.3 MB a checkpoint; the best 3 by each rule keep theirs\n" in out
    )
    assert out.endswith("space.yaml is valid; nothing was started\n")
    assert sorted(path.name for path in Path().iterdir()) == ["space.yaml"]


@pytest.mark.parametrize(
    ("fuse", "line"),
    [
        ("4", "8 trials in 2 process(es) of 1 CPU and 0 GPU, 4 in each (search.fuse)"),
        (
            "auto",
            "2 to 8 trials in 2 process(es) of 1 CPU and 0 GPU, up to 4 in each, as is measured "
            "first (search.fuse)",
        ),
    ],
)
def test_check_says_how_many_trials_share_a_process(
    space_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, fuse: str, line: str
) -> None:
    layout = SimpleNamespace(
        trials=8,
        epochs=3,
        concurrent=8,
        processes=2,
        fuse=4,
        workers=1,
        cpus_per_worker=1,
        gpus_per_worker=0.0,
        cluster_cpus=2.0,
        cluster_gpus=0.0,
        checkpoint_bytes_per_trial=1,
        disk_bytes=1,
    )
    resources = SimpleNamespace(plan=lambda *_: layout, check_models=lambda _: None)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.resources", resources)
    assert main(["check", str(space_file), "--set", f"search.fuse={fuse}"]) == 0
    assert f"at a time  {line}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fuse", "sentence"),
    [
        ("0", "search.fuse must be an integer from 1 to 1000 or 'auto', not 0"),
        ("many", "search.fuse must be an integer from 1 to 1000 or 'auto', not 'many'"),
    ],
)
def test_restore_refuses_what_is_no_number_of_trials(
    make_study: Callable[..., Path], capsys: Capture, fuse: str, sentence: str
) -> None:
    directory = make_study(("completed", [(0.2, 0.9, 0.8)]))
    before = (directory / "study.yaml").read_bytes()
    assert main(["restore", str(directory), "--fuse", fuse]) == 2
    assert capsys.readouterr().err == f"csg-ray: {sentence}\n"
    assert (directory / "study.yaml").read_bytes() == before


# the frame


def test_usage_errors_exit_with_2(capsys: Capture) -> None:
    assert main(["bst"]) == 2
    assert "Did you mean 'best'?" in capsys.readouterr().err
    assert main(["best"]) == 2
    assert main(["best", "x", "--by", "luck"]) == 2
    assert main(["best", "x", "--top", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_permission_is_one_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("csg_ray.cli.inspecting.load_study", refuse)
    assert refusal(capsys, "best", "there") == (
        "no permission to write or read (there); change its permissions or choose another place"
    )


LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "path", "reason"),
    [
        (["best", LONG], LONG, "file name too long"),
        (["evaluate", LONG], f"{LONG}/run.yaml", "file name too long"),
        (["restore", LONG], f"{LONG}/run.yaml", "file name too long"),
        (["export", "STUDY", LONG], LONG, "file name too long"),
        (["search", "space.yaml", "--study", LONG], LONG, "file name too long"),
        (["search", "space.yaml", "--study", "loop/a"], None, None),
        (["search", "loop"], None, None),
        (["export", "STUDY", "loop/a.yaml"], None, None),
        (["best", "space.yaml/a"], None, None),
        (["search", "space.yaml", "--study", "space.yaml/a"], None, None),
        (["search", "STUDY"], None, None),
        (["train", "STUDY"], None, None),
    ],
)
def test_impossible_names_are_one_sentence(
    scale: SimpleNamespace,
    space_file: Path,
    make_study: MakeStudy,
    capsys: Capture,
    words: list[str],
    path: str | None,
    reason: str | None,
) -> None:
    directory = str(make_study(WINNER).relative_to(Path.cwd()))
    Path("loop").symlink_to("loop")

    sentence = refusal(capsys, *(directory if word == "STUDY" else word for word in words))

    if path is not None:
        assert sentence.startswith(f"{path} cannot be used: ")
    if reason is not None:
        assert f"cannot be used: {reason}; choose another name or place" in sentence
    assert scale.ran == []


@pytest.mark.parametrize("number", ["ENOTDIR", "EISDIR", "EEXIST"])
def test_names_that_stand_in_the_way_are_one_sentence(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    code = getattr(errno, number)

    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("csg_ray.cli.inspecting.load_study", refuse)
    reason = os.strerror(code).lower()
    assert refusal(capsys, "best", "there") == (
        f"there cannot be used: {reason}; choose another name or place"
    )


def test_other_failures_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("csg_ray.cli.inspecting.load_study", fail)
    with pytest.raises(OSError, match="Input/output error"):
        main(["best", "there"])


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


@pytest.mark.parametrize("words", [["--help"], ["best", "STUDY"]])
def test_the_quick_commands_load_nothing_heavy(study: Path, words: list[str]) -> None:
    program = (
        "import json, sys\n"
        "from csg_ray.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'ray', 'pandas', 'optuna', 'pyarrow'} & set(sys.modules)\n"
        "print(json.dumps([code, sorted(heavy)]))\n"
    )
    words = [str(study) if word == "STUDY" else word for word in words]

    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_the_module_is_the_command(study: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "csg_ray", "export", str(study), "out.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.endswith("-m csg_ray train out.yaml\n")


# progress


def update(trial_id: str, state: str, epoch: int, accuracy: float | None = None) -> TrialUpdate:
    metrics: dict[str, Any] = {}
    if accuracy is not None:
        metrics = {"target_val/mean_class_accuracy": accuracy, "target_val/hse": 1 - accuracy}
    return TrialUpdate(trial_id, state, epoch, metrics, seconds=10.0 * epoch)


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


def test_plain_progress_has_a_line_per_trial_and_rare_signs_of_life(
    clock: SimpleNamespace,
) -> None:
    from csg_ray.cli.console import PlainProgress

    lines: list[str] = []
    progress = PlainProgress(write=lines.append, clock=lambda: clock.now)
    progress.study_started(
        "digits", Path("d"), 4, 3, "target_val/mean_class_accuracy", "max", Meter()
    )
    progress.trial_updated(update("0001", "pending", 0))
    for epoch in (1, 2, 3):
        clock.now += 10
        progress.trial_updated(update("0001", "running", epoch, 0.1 * epoch))
    progress.trial_updated(update("0001", "completed", 3, 0.3))
    progress.trial_updated(update("0002", "running", 0))
    clock.now += 15
    progress.trial_updated(update("0002", "running", 1, 0.9))
    progress.trial_updated(update("0002", "stopped", 1, 0.9))
    progress.message("something happened")

    assert lines == [
        "study digits in d: 4 trials of up to 3 epochs",
        "0/4 finished, 1 running, cost 30 s, about 2 min left",
        "trial 0001 completed at epoch 3/3: accuracy 0.300, HSE 0.700, 30 s * | 1/4 finished, "
        "0 running, best accuracy 0.300 (trial 0001), cost 30 s, about 2 min left",
        "trial 0002 stopped at epoch 1/3: accuracy 0.900, HSE 0.100, 10 s | 2/4 finished, "
        "0 running, best accuracy 0.300 (trial 0001), cost 40 s, about 45 s left",
        "something happened",
    ]


def test_time_left_ignores_what_an_earlier_session_did(clock: SimpleNamespace) -> None:
    from csg_ray.cli.board import Board

    board = Board(clock=lambda: clock.now)
    board.start("digits", Path("d"), 4, 2, "target_val/mean_class_accuracy", "max", Meter())
    assert board.take(update("0001", "completed", 2, 0.5)) is False
    assert board.seconds_left() is None
    board.take(update("0002", "running", 0))
    clock.now = 20.0
    board.take(update("0002", "running", 1, 0.4))
    # Half a trial in 20 s; two and a half are left.
    assert board.seconds_left() == pytest.approx(100.0)
    assert board.take(update("0002", "diverged", 2, 0.0)) is True
    assert (board.finished, board.running) == (2, 0)
    best = board.best()
    assert best is not None
    assert best.id == "0001"


def test_the_live_table_fits_the_terminal_and_keeps_what_matters() -> None:
    from rich.console import Console

    from csg_ray.cli.console import LiveProgress

    console = Console(width=80, height=14, record=True, force_terminal=True, file=sys.stderr)
    progress = LiveProgress(console)
    progress.study_started(
        "digits", Path("d"), 40, 3, "target_val/mean_class_accuracy", "max", Meter()
    )
    progress.trial_updated(update("0001", "completed", 3, 0.8))
    for number in range(2, 20):
        progress.trial_updated(update(f"{number:04d}", "stopped", 1, 0.2))
    progress.trial_updated(update("0020", "running", 1, 0.3))
    progress.study_finished()

    text = "".join(segment.text for segment in console.render(progress.render()))
    table = "\n".join(line for line in text.splitlines() if "│" in line)
    ids = [words[0] for words in words_of(table) if words[0][:2] == "00"]
    assert ids == ["0001", "0016", "0017", "0018", "0019", "0020"]
    assert "14 more" in text
    assert "0001 *" in text
    assert len(text.splitlines()) <= 14


def test_durations_and_sizes_are_short() -> None:
    from csg_ray.cli.board import describe_bytes

    assert [describe_seconds(s) for s in (0.1, 59, 60, 5399, 5400)] == [
        "1 s",
        "59 s",
        "1 min",
        "90 min",
        "1.5 h",
    ]
    assert [describe_bytes(b) for b in (512, 3_400_000, 1.2e9)] == ["512 B", "3.4 MB", "1.2 GB"]
