from __future__ import annotations

import hashlib
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from csg_ray.config.errors import UserError
from csg_ray.config.load import load_config
from csg_ray.results.export import (
    check_new_directory,
    export_config,
    first_free,
    selected_with_target_labels,
    write_config,
)
from csg_ray.results.provenance import collect_provenance, compare_provenance, hash_code
from csg_ray.results.study import load_study
from csg_ray.results.table import write_table
from csg_ray.storage.paths import RemotePath, StoragePath
from s3_server import S3Server

MakeStudy = Callable[..., Path]
EPOCHS = [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)]


@pytest.fixture
def study_directory(make_study: MakeStudy) -> Path:
    return make_study(("completed", EPOCHS), ("stopped", EPOCHS[:1]), ("failed", []))


def test_an_exported_trial_loads_as_its_run_config(
    make_study_at: Callable[..., StoragePath], place: StoragePath
) -> None:
    directory = make_study_at(("completed", EPOCHS))
    study = load_study(directory)
    out = place / "best.yaml"

    write_config(export_config(study, study.trials[0], "target_val"), out)

    config = load_config(out)
    assert config == study.space.config_for(dict(study.trials[0].params))
    assert config.train.epochs == 3
    assert config.augment.magnitude == 6
    content = yaml.safe_load(out.read_text())
    assert list(content)[-1] == "provenance"
    assert content["provenance"] == {
        "study": "digits",
        "study_directory": str(directory),
        "trial": "0001",
        "state": "completed",
        "selection": "target_val",
        "selected with target labels": True,
        "metrics": {
            "diverged": 0,
            "epoch": 3,
            "source_val/mean_class_accuracy": 0.95,
            "target_val/hse": 0.70,
            "seconds": 60.0,
            "target_val/mean_class_accuracy": 0.60,
        },
        "seed": 0,
        "repeats": 1,
        "cost": {
            "trial_seconds": 180.0,
            "search": {
                "training_hours": 0.05,
                "cpu_hours": 0.05,
                "gpu_hours": 0.0,
                "epochs": 3,
                "epochs_at_full_budget": 3,
            },
        },
        **study.provenance,
    }


def test_an_export_names_its_study_for_good(
    study_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study_directory.parent)
    study = load_study("digits")

    origin = export_config(study, study.trials[0])["provenance"]

    assert origin["study_directory"] == str(study_directory)


def test_an_export_tells_what_changed_at_each_restore(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    changed = {"versions.torch": {"was": "2.11.0", "is": "2.15.0"}}
    restores = [{"at": "2026-01-02T00:00:00+00:00", "more": 2, "changed": changed}]
    study = load_study(make_study(("completed", EPOCHS), header={"restores": restores}))
    out = tmp_path / "best.yaml"

    write_config(export_config(study, study.trials[0]), out)

    provenance = yaml.safe_load(out.read_text())["provenance"]
    assert provenance["restores"] == restores
    assert provenance["versions"]["torch"] == "2.11.0"


def test_a_choice_by_id_says_so(study_directory: Path) -> None:
    study = load_study(study_directory)

    origin = export_config(study, study.trials[1])["provenance"]

    assert (origin["selection"], origin["state"]) == ("chosen by id", "stopped")


LABEL_FREE = {"metric": "target_val/hse", "mode": "min"}
SOURCE = {"metric": "source_val/mean_class_accuracy", "mode": "max"}
UNSTEERED = {"sampler": "random", "scheduler": "none"}


@pytest.mark.parametrize(
    ("search", "rule", "stamped"),
    [
        ({}, "target_val", True),
        ({}, "source_val", True),  # TPE and ASHA followed the accuracy on target_val
        ({"sampler": "random"}, "hse", True),  # ASHA alone did
        ({"scheduler": "none"}, "hse", True),  # TPE alone did
        (UNSTEERED, "source_val", False),
        (UNSTEERED, "target_val", True),
        (LABEL_FREE, "hse", False),
        (LABEL_FREE, "target_val", True),
        (SOURCE, "source_val", False),
        (SOURCE, None, True),
    ],
)
def test_the_stamp(
    make_study: MakeStudy, search: dict[str, str], rule: str | None, stamped: bool
) -> None:
    study = load_study(make_study(search=search))

    assert selected_with_target_labels(study, rule) is stamped


def test_nothing_is_overwritten_on_a_uri(study_directory: Path, uri: RemotePath) -> None:
    study = load_study(study_directory)
    (uri / "out.yaml").write_bytes(b"mine")

    with pytest.raises(UserError, match=r"out\.yaml.* exists and is not overwritten"):
        write_config(export_config(study, study.trials[0]), uri / "out.yaml")

    assert (uri / "out.yaml").read_bytes() == b"mine"


def test_a_store_without_permission_is_refused(s3: S3Server, uri: RemotePath) -> None:
    s3.fault = lambda request: "403 AccessDenied" if request.startswith("PUT") else None

    with pytest.raises(UserError, match=r"cannot be written to: access is denied; check the cred"):
        check_new_directory(uri / "studies" / "digits")


def test_nothing_is_overwritten(study_directory: Path, tmp_path: Path) -> None:
    study = load_study(study_directory)
    mapping = export_config(study, study.trials[0])
    out = tmp_path / "out.yaml"
    out.write_text("mine")

    with pytest.raises(UserError, match=r"out.yaml exists and is not overwritten"):
        write_config(mapping, out)
    with pytest.raises(UserError, match=r"the folder .*none does not exist$"):
        write_config(mapping, tmp_path / "none" / "out.yaml")

    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.yaml", "studies"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(study_directory: Path, tmp_path: Path) -> None:
    study = load_study(study_directory)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)

    with pytest.raises(UserError, match=r"locked cannot be written to: Permission denied$"):
        write_config(export_config(study, study.trials[0]), locked / "out.yaml")
    with pytest.raises(UserError, match=r"locked cannot be written to: Permission denied$"):
        check_new_directory(locked / "studies" / "digits")


def test_a_place_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(UserError, match=r"^/proc cannot be written to: "):
        check_new_directory(Path("/proc/studies/digits"))


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match=r"cannot be made: .*file is a file$"):
        check_new_directory(tmp_path / "file" / "digits")


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_directory_below_a_broken_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)

    with pytest.raises(UserError, match=r"cannot be made: .*link is a link to nowhere$"):
        check_new_directory(tmp_path / "link" / "digits")


def test_the_first_free_name(place: StoragePath) -> None:
    assert first_free(place / "a.b") == place / "a.b"
    for name in ("a.b", "a.b-2"):
        (place / name).mkdir()
        (place / name / "study.yaml").write_bytes(b"")
    (place / "out.yaml").write_bytes(b"")
    assert first_free(place / "a.b") == place / "a.b-3"
    assert first_free(place / "out.yaml") == place / "out-2.yaml"


def test_the_table_reads_back(make_study_at: Callable[..., StoragePath]) -> None:
    study_directory = make_study_at(("completed", EPOCHS), ("stopped", EPOCHS[:1]), ("failed", []))
    study = load_study(study_directory)
    path = study_directory / "trials.parquet"

    write_table(study, path)
    write_table(study, path)

    table = pq.read_table(io.BytesIO(path.read_bytes()))
    rows = table.to_pylist()
    assert [(row["id"], row["epoch"], row["state"]) for row in rows] == [
        ("0001", 1, "completed"),
        ("0001", 2, "completed"),
        ("0001", 3, "completed"),
        ("0002", 1, "stopped"),
        ("0003", None, "failed"),
    ]
    assert [row["target_val/mean_class_accuracy"] for row in rows] == [0.2, 0.4, 0.6, 0.2, None]
    assert [row["seconds"] for row in rows] == [60.0] * 4 + [None]
    assert [row["trial_seconds"] for row in rows] == [180.0] * 3 + [60.0, 0.0]
    assert [row["param/augment.magnitude"] for row in rows] == [6, 6, 6, 7, 8]
    assert table.schema.field("param/augment.magnitude").type == pa.int64()
    assert table.schema.field("param/method.loss_weight").type == pa.float64()
    assert table.column_names[:5] == ["id", "state", "reason", "origin", "epoch"]
    names = {path.name for path in study_directory.iterdir()}
    assert names == {"study.yaml", "trials", "trials.parquet"}


def test_settings_of_several_kinds_become_text(study_directory: Path) -> None:
    for number, value in ((1, '"auto"'), (2, "512")):
        params = study_directory / "trials" / f"{number:04d}" / "params.json"
        params.write_text(
            params.read_text().replace('"augment.magnitude"', f'"q": {value}, "augment.magnitude"')
        )
    path = study_directory / "trials.parquet"

    write_table(load_study(study_directory), path)

    column = pq.read_table(path).column("param/q").to_pylist()
    assert column == ["auto", "auto", "auto", "512", None]


def test_provenance_says_what_is_installed_and_what_changed() -> None:
    provenance = collect_provenance("abc")

    assert provenance["data_sha256"] == "abc"
    assert provenance["versions"].keys() == {
        "python",
        "csg_ray",
        "torch",
        "torchvision",
        "ray",
        "optuna",
    }
    assert compare_provenance(provenance, collect_provenance("abc")) == {}
    older = provenance | {"versions": provenance["versions"] | {"torch": "1.0"}, "git": None}
    expected = {"versions.torch": {"was": "1.0", "is": provenance["versions"]["torch"]}}
    found = compare_provenance(older, provenance | {"git": {"commit": "c", "dirty": True}})
    assert found == expected | {
        "git.commit": {"was": None, "is": "c"},
        "git.dirty": {"was": None, "is": True},
    }


def test_the_code_hash_sees_contents_and_names_of_python_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("two")
    first = hash_code(tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    assert hash_code(tmp_path) == first
    expected = hashlib.sha256(b"a.py\x003\x00onesub/b.py\x003\x00two").hexdigest()
    assert first == expected
    (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "c.py")
    assert hash_code(tmp_path) != first


def test_git_is_only_believed_when_it_tracks_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("csg_ray.results.provenance._PACKAGE", package)
    git("init")
    assert collect_provenance("")["git"] is None
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert collect_provenance("")["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "elsewhere.txt").write_text("no matter")
    assert collect_provenance("")["git"] == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert collect_provenance("")["git"] == {"commit": commit, "dirty": True}
