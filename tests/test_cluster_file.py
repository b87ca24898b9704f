"""Cluster files: the shipped ones are valid, and each mistake gets its one sentence."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.scale.cluster import Cluster
from csg_ray.scale.cluster_checks import check_cluster_file
from csg_ray.scale.cluster_file import ClusterFile, load_cluster_file
from csg_ray.scale.resources import plan
from csg_ray.search_space import parse_search_space

ROOT = Path(__file__).parents[1]
SHIPPED = [
    path
    for path in [ROOT / "cluster.yaml", *sorted((ROOT / "launch").glob("*.yaml"))]
    if "cluster_name:" in path.read_text()
]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GOOD: dict[str, Any] = {
    "cluster_name": "c",
    "max_workers": 8,
    "provider": {"type": "aws", "region": "us-west-2"},
    "metadata": {"storage": "s3://bucket/csg_ray"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "node_config": {}, "max_workers": 8},
    },
    "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
    "initialization_commands": ["echo 'export RAY_AUTH_MODE=token' >> ~/.bashrc"],
    "setup_commands": [f"python{PYTHON} -m pip install 'ray[default,tune]==9.8.7'"],
}
LOCAL = {
    "cluster_name": "c",
    "provider": {"type": "local", "head_ip": "192.0.2.1", "worker_ips": ["192.0.2.2"]},
    "file_mounts": GOOD["file_mounts"],
    "initialization_commands": GOOD["initialization_commands"],
    "setup_commands": GOOD["setup_commands"],
}
Capture = pytest.CaptureFixture[str]
Write = Callable[[Any], Path]


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client with Ray 9.8.7, and a home with a token."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("00")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("csg_ray.scale.cluster_versions.version", lambda _: "9.8.7")
    monkeypatch.setattr("csg_ray.scale.cluster_checks.find_spec", lambda _: object())
    return tmp_path


@pytest.fixture
def write(client: Path) -> Write:
    """Writes a cluster file; None in a change takes the key away."""

    def write(changes: dict[str, Any], base: dict[str, Any] = GOOD) -> Path:
        config = copy.deepcopy(base)
        for dotted, value in changes.items():
            *parents, key = dotted.split("/")
            section = config
            for parent in parents:
                section = section[parent]
            if value is None:
                del section[key]
            else:
                section[key] = value
        (client / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return Path("c.yaml")

    return write


def refusal(capsys: Capture, *words: str | Path) -> str:
    assert main(["check", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("csg-ray: ").rstrip("\n")


def notes_of(path: Path) -> list[str]:
    return check_cluster_file(load_cluster_file(path))


# the shipped files


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_are_valid_but_for_what_is_marked(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("csg_ray.scale.cluster_versions.version", lambda _: pinned("ray"))

    assert main(["check", "--cluster", str(path)]) == 0

    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[-1] == f"{path} is valid; nothing was started"
    marked = [
        number
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "# CHANGE: " in line
    ]
    todo = [line.split(maxsplit=2)[2] for line in lines if line.startswith("     to do")]
    assert [int(found[1]) for line in todo if (found := re.match(r"line (\d+):", line))] == marked
    others = [line for line in todo if not line.startswith("line ")]
    assert all("Python" in line or "metadata.storage" in line for line in others), others


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_install_the_tested_versions(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    installed = [command for command in config["setup_commands"] if "--editable" in command]
    assert len(installed) == 1
    assert "--constraint ~/csg_ray/constraints.txt" in installed[0]
    for name in ("csg_ray", "pyproject.toml", "README.md", "constraints.txt"):
        assert config["file_mounts"][f"~/csg_ray/{name}"] == name
    python = re.search(r"python\s?(3\.\d+)", " ".join(config["setup_commands"]))
    assert python is not None
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert int(python[1].partition(".")[2]) >= int(oldest[1])


def test_what_is_started_is_alike_on_aws_and_google() -> None:
    aws, gcp = (
        yaml.safe_load((ROOT / name).read_text()) for name in ("cluster.yaml", "launch/gcp.yaml")
    )
    same = ("file_mounts", "initialization_commands", "worker_start_ray_commands")
    for key in (*same, "head_start_ray_commands", "idle_timeout_minutes", "rsync_exclude"):
        assert aws[key] == gcp[key]
    assert [command.rpartition(" ")[0] for command in aws["setup_commands"]] == [
        command.rpartition(" ")[0] for command in gcp["setup_commands"]
    ]


# what is refused


def node(**settings: Any) -> dict[str, Any]:
    return {"resources": {"CPU": 8, "GPU": 1}, "node_config": {}} | settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_worker": 3}, "unknown key 'max_worker': did you mean 'max_workers'?"),
        (
            {"available_node_types/gpu": node(max_worker=3)},
            "unknown key 'available_node_types.gpu.max_worker': did you mean 'max_workers'?",
        ),
        ({"auth": {"user": "me"}}, "unknown key 'auth.user': did you mean 'ssh_user'?"),
        ({"max_workers": "two"}, "max_workers must be an integer, not 'two'"),
        ({"max_workers": -1}, "max_workers must be at least 0, not -1"),
        ({"setup_commands": "ls"}, "setup_commands must be a list, not 'ls'"),
        ({"file_mounts": []}, "file_mounts must be a mapping of settings, not []"),
        (
            {"available_node_types/gpu/resources/GPU": 0.5},
            "available_node_types.gpu.resources.GPU must be an integer, not 0.5",
        ),
        (
            {"provider/use_internal_ips": "maybe"},
            "provider.use_internal_ips must be true or false, not 'maybe'",
        ),
        ({"cluster_name": None}, "cluster_name is missing"),
        ({"provider": None}, "provider is missing"),
        ({"provider/type": None}, "provider.type is missing"),
        ({"provider/type": "awz"}, "provider.type is 'awz': did you mean 'aws'?"),
        ({"provider/region": None}, "provider.region is missing; provider aws needs it"),
        (
            {"provider": {"type": "gcp", "region": "r", "availability_zone": "z"}},
            "provider.project_id is missing; provider gcp needs it",
        ),
        (
            {"available_node_types/gpu/node_config": None},
            "available_node_types.gpu.node_config is missing",
        ),
        ({"head_node_type": None}, "head_node_type is missing; it must be one of head, gpu"),
        ({"head_node_type": "heda"}, "head_node_type is 'heda': did you mean 'head'?"),
        (
            {"available_node_types/gpu": node(min_workers=3, max_workers=2)},
            "available_node_types.gpu.min_workers is 3, more than its max_workers 2; lower one or "
            "raise the other",
        ),
        (
            {"max_workers": 1, "available_node_types/gpu": node(min_workers=3, max_workers=3)},
            "The specified global `max_workers` is smaller than the sum of `min_workers` of all "
            "the available node types.",
        ),
        (
            {"provider": {"type": "external", "module": "a.B"}},
            "cluster_synced_files is missing; provider external has no default for it",
        ),
        ({"docker": {"image": "ray:9.8.7"}}, "Must provide a container & image name"),
    ],
)
def test_what_ray_would_not_take_is_one_sentence(
    write: Write, capsys: Capture, changes: dict[str, Any], sentence: str
) -> None:
    assert refusal(capsys, "--cluster", write(changes)) == f"c.yaml: {sentence}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"available_node_types": {"gpu": node()}},
            "available_node_types is not for provider local, whose hosts are in provider.head_ip "
            "and provider.worker_ips; remove it",
        ),
        (
            {"provider/worker_ips": None},
            "provider.worker_ips is missing; provider local needs it",
        ),
        ({"min_workers": "all"}, "min_workers must be an integer, not 'all'"),
    ],
)
def test_hosts_of_ones_own(
    write: Callable[..., Path], capsys: Capture, changes: dict[str, Any], sentence: str
) -> None:
    assert refusal(capsys, "--cluster", write(changes, LOCAL)) == f"c.yaml: {sentence}"


def test_a_file_that_is_none(client: Path, capsys: Capture) -> None:
    assert refusal(capsys, "--cluster", "no.yaml") == (
        "cannot read no.yaml: No such file or directory; give a YAML file"
    )
    Path("c.yaml").write_text("provider: {type: aws}\nprovider: {type: gcp}\n")
    assert refusal(capsys, "--cluster", "c.yaml") == (
        "c.yaml: line 2: the key 'provider' stands twice, first in line 1; remove one"
    )
    assert refusal(capsys) == "nothing to check; give a SPACE_FILE, or --cluster CLUSTER.yaml"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"file_mounts": {}},
            "no token goes to the nodes, so whoever reaches them could run code there; run "
            "'ray get-auth-token --generate' and add '~/.ray/auth_token: ~/.ray/auth_token' to "
            "file_mounts (or, on a network that you trust, set RAY_AUTH_MODE=disabled in "
            "initialization_commands)",
        ),
        (
            {"file_mounts": {"~/.ray/auth_token": "~/other"}},
            "file_mounts: there is no token in ~/other; run 'ray get-auth-token --generate'",
        ),
        (
            {"initialization_commands": []},
            "the token of 'ray get-auth-token --generate' is mounted, but RAY_AUTH_MODE is not "
            "set on the head; let initialization_commands append 'export RAY_AUTH_MODE=token' to "
            "~/.bashrc",
        ),
        (
            {
                "initialization_commands": [],
                "head_start_ray_commands": ["RAY_AUTH_MODE=token ray start --head"],
            },
            "the token of 'ray get-auth-token --generate' is mounted, but RAY_AUTH_MODE is not "
            "set on the worker; let initialization_commands append 'export RAY_AUTH_MODE=token' "
            "to ~/.bashrc",
        ),
    ],
)
def test_the_token(write: Write, capsys: Capture, changes: dict[str, Any], sentence: str) -> None:
    assert refusal(capsys, "--cluster", write(changes)) == f"c.yaml: {sentence}"


def test_without_a_token_on_purpose(write: Write) -> None:
    off = {"initialization_commands": ["export RAY_AUTH_MODE=disabled"], "file_mounts": {}}
    assert notes_of(write(off)) == []


def test_mounts_are_there(write: Write, client: Path, capsys: Capture) -> None:
    mounts = GOOD["file_mounts"] | {"~/code": "cod"}
    path = write({"file_mounts": mounts})
    assert refusal(capsys, "--cluster", path) == (
        "c.yaml: file_mounts: cod, the source of ~/code, does not exist; correct it, or call ray "
        f"up from where it does (this is {client})"
    )
    (client / "cod").mkdir()
    assert notes_of(path) == []
    assert refusal(capsys, "--cluster", write({"file_mounts": {"~/code": 5}})) == (
        "c.yaml: file_mounts.~/code must be a path, not 5"
    )


# versions


@pytest.mark.parametrize(
    "changes",
    [
        {"setup_commands": ["pip install ray==9.8.6"]},
        {"setup_commands": ["pip install 'ray[default, tune] == 9.8.6'"]},
        {"setup_commands": [], "worker_setup_commands": ["pip install ray==9.8.6"]},
        {"available_node_types/gpu": node(worker_setup_commands=["pip install ray==9.8.6"])},
        {"docker": {"image": "rayproject/ray:9.8.6-py312-gpu", "container_name": "c"}},
        {
            "docker": {
                "image": "rayproject/ray:9.8.7-py312-gpu",
                "container_name": "c",
                "worker_image": "rayproject/ray:9.8.6-py312-cu130",
            }
        },
        {
            "file_mounts": GOOD["file_mounts"] | {"~/code": "code"},
            "setup_commands": ["pip install -c ~/code/constraints.txt 'ray[default]'"],
        },
    ],
    ids=["pin", "extras", "worker", "type", "image", "worker image", "constraints"],
)
def test_another_ray_is_refused(
    write: Write, client: Path, capsys: Capture, changes: dict[str, Any]
) -> None:
    (client / "code").mkdir()
    (client / "code" / "constraints.txt").write_text("requests==2.0\nray==9.8.6\n")
    sentence = refusal(capsys, "--cluster", write(changes))
    assert sentence.endswith(
        " asks for Ray 9.8.6, but this client has 9.8.7, and a study wants one version "
        "everywhere; ask for 9.8.7 there, or install 9.8.6 here"
    )


def test_without_setup_commands_ray_would_install_a_nightly(write: Write, capsys: Capture) -> None:
    assert "asks for Ray 3.0.0.dev0, but this client has 9.8.7" in refusal(
        capsys, "--cluster", write({"setup_commands": None})
    )
    # Not when the image has Ray: the default looks for it first.
    image = {
        "image": f"rayproject/ray:9.8.7-py{PYTHON.replace('.', '')}-gpu",
        "container_name": "c",
    }
    assert notes_of(write({"setup_commands": None, "docker": image})) == []


def test_a_version_that_is_written_shorter(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csg_ray.scale.cluster_versions.version", lambda _: "9.8.0")
    assert notes_of(write({"setup_commands": ["pip install ray==9.8"]})) == []


def test_no_ray_at_all_is_to_do(write: Write) -> None:
    assert notes_of(write({"setup_commands": ["pip install xray==1.0 ray-tools==2.0"]})) == [
        "no command or image pins Ray; pin ray==9.8.7, the client's"
    ]


def test_pythons(write: Write, capsys: Capture) -> None:
    pin = GOOD["setup_commands"]
    assert refusal(capsys, "--cluster", write({"setup_commands": ["uv venv --python 3.10 v"]})) == (
        "c.yaml: 'uv venv --python 3.10 v' asks for Python 3.10, but csg_ray needs 3.11 or newer"
    )
    assert notes_of(write({"setup_commands": ["uv venv --python 3.99 v", *pin]})) == [
        f"'uv venv --python 3.99 v' asks for Python 3.99, this client has {PYTHON}: fine for "
        "jobs, whose driver runs on the head, not for ray.init from here"
    ]


def test_an_image_without_cuda_is_refused_on_gpus(write: Write, capsys: Capture) -> None:
    for tag in ("9.8.7-py312", "9.8.7-py312-cpu", "latest"):
        docker = {"image": f"rayproject/ray:{tag}", "container_name": "c"}
        assert refusal(capsys, "--cluster", write({"docker": docker})) == (
            f"c.yaml: the nodes 'gpu' have 1 GPU, but rayproject/ray:{tag} is an image for CPUs; "
            "take the one whose tag ends in -gpu"
        )
    own = node(docker={"worker_image": "rayproject/ray:9.8.7-py312"})
    docker = {"image": "rayproject/ray:9.8.7-py312-gpu", "container_name": "c"}
    path = write({"docker": docker, "available_node_types/gpu": own})
    assert "rayproject/ray:9.8.7-py312 is an image for CPUs" in refusal(capsys, "--cluster", path)
    mine = {"image": "registry/mine:1", "container_name": "c"}
    assert notes_of(write({"docker": mine})) == []


def test_another_cuda_is_worth_knowing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    index = "pip install torch --index-url https://download.example/whl/cu{}"
    path = write({"setup_commands": [index.format(126), *GOOD["setup_commands"]]})
    assert [re.sub("'pip .*?'", "it", note) for note in notes_of(path)] == [
        "it asks for CUDA 12.6, torch here was built for 13.0: torch brings its own libraries, "
        "but the node's driver must be new enough for them"
    ]
    assert notes_of(write({"setup_commands": [index.format(130), *GOOD["setup_commands"]]})) == []


# storage and marks


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"metadata": {"storage": "gs://b/x"}}, None),
        ({"metadata": {}, "max_workers": 0}, None),
        ({"metadata": {}, "head_setup_commands": ["sudo mount -t nfs4 host:/x /x"]}, None),
        ({"metadata": None}, "no shared storage is named, and trials on other nodes cannot "),
        (
            {"metadata": {"storage": "/mnt/x"}},
            "metadata.storage is /mnt/x: the same mount must be on every node",
        ),
    ],
)
def test_shared_storage(write: Write, changes: dict[str, Any], note: str | None) -> None:
    notes = notes_of(write(changes))
    assert len(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)


def test_marks_and_placeholders_are_listed(write: Write) -> None:
    path = write({"metadata/storage": "s3://CHANGE-ME/x"})
    lines = path.read_text().splitlines()
    lines[0] += "   # CHANGE: any name"
    lines.insert(1, "# CHANGE: this is no setting")
    path.write_text("\n".join(lines))
    storage = next(n for n, line in enumerate(lines, start=1) if "CHANGE-ME" in line)
    assert notes_of(path) == [
        "line 1: cluster_name: c (CHANGE: any name)",
        f"line {storage}: storage: s3://CHANGE-ME/x is a placeholder; set it",
    ]


@pytest.mark.parametrize(
    ("provider", "package"),
    [
        ({"type": "aws", "region": "r"}, "boto3"),
        (yaml.safe_load(SHIPPED[0].read_text())["provider"], "boto3"),
        (
            {"type": "gcp", "region": "r", "availability_zone": "z", "project_id": "p"},
            "google-api-python-client",
        ),
        ({"type": "external", "module": "a.B"}, None),
    ],
)
def test_the_library_of_the_cloud(
    write: Write, monkeypatch: pytest.MonkeyPatch, provider: dict[str, Any], package: str | None
) -> None:
    monkeypatch.setattr("csg_ray.scale.cluster_checks.find_spec", lambda _: None)
    kinds = ("head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    others: dict[str, Any] = {f"{kind}_commands": [] for kind in kinds} | {
        "cluster_synced_files": []
    }
    expected = [f"ray up needs {package} here: pip install {package}"] if package else []
    assert notes_of(write({"provider": provider} | others)) == expected


# what fits


def cluster(write: Write, **types: tuple[int, dict[str, int]]) -> ClusterFile:
    nodes = {
        name: {"max_workers": most, "resources": holds, "node_config": {}}
        for name, (most, holds) in types.items()
    }
    head = {"head": {"resources": {"CPU": 2}, "node_config": {}}}
    return load_cluster_file(write({"available_node_types": head | nodes, "max_workers": 6}))


def trials_at_a_time(file: ClusterFile, resources: dict[str, Any]) -> int:
    nodes = file.grown()
    assert nodes is not None
    mapping = {
        "study": "s",
        "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
        "search": {"metric": "target_val/hse", "mode": "min", "num_trials": 999},
        "resources": resources,
    }
    return plan(parse_search_space(mapping), Cluster(nodes, "the cluster of c.yaml")).concurrent


@pytest.mark.parametrize(
    ("resources", "trials"),
    [
        ({}, 2 + 5 * 8 + 16),  # the sixth node is of the larger type
        ({"cpus_per_worker": 3}, 5 * 2 + 5),  # not 58 // 3
        ({"gpus_per_worker": 1}, 1 * 4 + 5 * 1),
        ({"gpus_per_worker": 0.4}, 1 * 4 * 2 + 5 * 2),
        ({"gpus_per_worker": 4}, 1),
        ({"gpus_per_worker": 1, "workers_per_trial": 2}, 9 // 2),
        ({"gpus_per_worker": 1, "workers_per_trial": 9}, 1),
    ],
)
def test_trials_at_a_time_are_counted_node_by_node(
    write: Write, resources: dict[str, Any], trials: int
) -> None:
    file = cluster(write, small=(9, {"CPU": 8, "GPU": 1}), large=(1, {"CPU": 16, "GPU": 4}))
    assert trials_at_a_time(file, resources) == trials


def test_what_never_fits_is_refused_with_the_numbers(write: Write) -> None:
    file = cluster(write, small=(9, {"CPU": 8, "GPU": 1}))
    with pytest.raises(UserError) as refused:
        trials_at_a_time(file, {"gpus_per_worker": 1, "workers_per_trial": 7})
    assert str(refused.value) == (
        "resources.workers_per_trial is 7, but the cluster of c.yaml holds 6 workers of 1 CPU and "
        "1 GPU, so no trial can ever start; set it to at most 6"
    )


@pytest.mark.parametrize("kind", ["cloud", "local"])
def test_nodes_of_unknown_size_tell_nothing(write: Callable[..., Path], kind: str) -> None:
    path = write({"available_node_types/gpu/resources": None}) if kind == "cloud" else None
    file = load_cluster_file(path or write({}, LOCAL))
    assert file.grown() is None


def test_a_space_is_planned_on_the_cluster(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = str(ROOT / "search_spaces" / "digits.yaml")
    path = str(write({}))
    words = ["--trials", "99", "--cluster", path]

    assert main(["check", space, *words, "--set", "resources.cpus_per_worker=3"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "at a time  16 trials, each 1 worker(s) of 3 CPU and 0 GPU" in lines
    assert "machines  64 CPU, 8 GPU in all" in lines
    assert f"{space} is valid; nothing was started" in lines
    assert lines[-1] == f"{path} is valid; nothing was started"

    sentence = refusal(capsys, space, *words, "--set", "resources.gpus_per_worker=2")
    assert sentence.startswith(
        "resources.gpus_per_worker is 2, but the cluster of c.yaml has 1 GPUs on any one machine"
    )


def test_a_space_on_hosts_of_unknown_size(write: Callable[..., Path], capsys: Capture) -> None:
    space = str(ROOT / "search_spaces" / "digits.yaml")
    assert main(["check", space, "--cluster", str(write({}, LOCAL))]) == 0
    assert (
        f"to do  c.yaml does not say what its nodes hold: whether a trial of {space} fits shows "
        "when they are up\n"
    ) in capsys.readouterr().out


def test_what_ray_says_of_its_defaults_is_not_passed_on(
    write: Callable[..., Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger = logging.getLogger("ray.autoscaler")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    logging.getLogger("ray.autoscaler._private.util").info("heard")

    load_cluster_file(write({}))
    load_cluster_file(write({"min_workers": 0, "max_workers": 0}, LOCAL))
    load_cluster_file(write({}))

    assert [record.getMessage() for record in records] == ["heard"]
    assert logger.level == logging.INFO
    logger.setLevel(logging.NOTSET)
    assert capsys.readouterr() == ("", "")


def test_a_ray_that_cannot_tell(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.autoscaler._private.util", None)
    sentence = refusal(capsys, "--cluster", write({}))
    assert sentence.startswith("c.yaml: this Ray cannot check a cluster file (")
    assert sentence.endswith("pip install --constraint constraints.txt 'ray[default]'")
