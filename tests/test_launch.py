"""What `launch/` holds: scripts that do what they say, files that ask for one version."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from csg_ray.cli.app import app

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
STUDY = "s3://bucket/a b"

# The fields of the RayJob custom resource (KubeRay, ray.io/v1) that kuberay.yaml may use.
RAYJOB_FIELDS = {
    "spec": "entrypoint backoffLimit shutdownAfterJobFinishes rayClusterSpec",
    "spec.rayClusterSpec": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions "
    "headGroupSpec workerGroupSpecs",
    "spec.rayClusterSpec.authOptions": "mode",
    "spec.rayClusterSpec.autoscalerOptions": "version idleTimeoutSeconds",
    "spec.rayClusterSpec.headGroupSpec": "rayStartParams template",
    "spec.rayClusterSpec.workerGroupSpecs": "groupName replicas minReplicas maxReplicas "
    "rayStartParams template",
}


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH; whatever is in it stands in for the program of that name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def stand_in(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def search_arguments(words: list[str]) -> dict[str, Any]:
    """The parsed arguments of a `csg-ray search ...`; fails on what the command does not know."""
    assert words[:2] == ["csg-ray", "search"]
    command = typer.main.get_command(app)
    search = command.get_command(None, "search")  # type: ignore[attr-defined]
    return dict(search.make_context("search", words[2:]).params)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_run_and_refuse_too_few_words(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    refused = subprocess.run([str(script), "one"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: ")


# submit.sh


def test_submit_sends_the_file_and_the_command_unharmed(bin_folder: Path, tmp_path: Path) -> None:
    # `exec` runs the command in a shell, as on the head; `job submit` keeps each word it gets.
    stand_in(
        bin_folder,
        "ray",
        f'echo "$1" >> {tmp_path}/calls\n'
        f'[[ $1 == rsync-up ]] && printf "%s\\n" "$@" > {tmp_path}/rsync\n'
        '[[ $1 == exec ]] && exec bash -c "$3"\n'
        f'[[ $1 == job ]] && printf "%s\\n" "$@" > {tmp_path}/job\n'
        "true",
    )
    words = ["c.yaml", "dir/my space.yaml", STUDY, "--set", "method.stages='3,4'", "--trials", "5"]

    subprocess.run([str(ROOT / "launch/submit.sh"), *words], check=True)

    assert (tmp_path / "calls").read_text().split() == ["rsync-up", "exec", "job"]
    assert (tmp_path / "rsync").read_text().splitlines()[1:] == [*words[:2], "spaces/"]
    submitted = (tmp_path / "job").read_text().splitlines()
    options, command = submitted[: submitted.index("--")], submitted[submitted.index("--") + 1 :]
    assert options == ["job", "submit", "--address", "http://127.0.0.1:8265"]
    parsed = search_arguments(command)
    assert str(parsed["space_file"]) == f"{tmp_path}/home/spaces/my space.yaml"
    assert (parsed["resume"], parsed["trials"]) == (True, 5)
    assert parsed["settings"] == ["method.stages='3,4'"]
    assert command[command.index("--study") + 1] == STUDY


def test_submit_fails_when_the_job_fails(bin_folder: Path) -> None:
    stand_in(bin_folder, "ray", "[[ $1 != exec ]]")
    done = subprocess.run([str(ROOT / "launch/submit.sh"), "c.yaml", "s.yaml", STUDY])
    assert done.returncode == 1


# slurm.sh


@pytest.fixture
def slurm(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a batch job; its `srun` writes its words to `srun` and ends with 7."""
    for name, value in (("JOB_ID", "42"), ("CPUS_PER_TASK", "32"), ("JOB_NUM_NODES", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    stand_in(bin_folder, "ray", "true")
    stand_in(bin_folder, "hostname", "echo 192.0.2.1 198.51.100.1")
    stand_in(bin_folder, "scontrol", f'echo "$@" > {tmp_path}/scontrol')
    stand_in(bin_folder, "srun", f'printf "%s\\n" "$@" > {tmp_path}/srun; exit 7')
    return [str(ROOT / "launch/slurm.sh"), "s.yaml", STUDY, "--trials", "5"]


def test_slurm_runs_one_ray_a_node_and_one_driver(slurm: list[str], tmp_path: Path) -> None:
    assert subprocess.run(slurm).returncode == 7
    assert not (tmp_path / "scontrol").exists()

    words = (tmp_path / "srun").read_text().splitlines()
    start = words[words.index("ray") : words.index("--")]
    assert start[:4] == ["ray", "symmetric-run", "--address", "192.0.2.1:6379"]
    assert start[4:] == ["--min-nodes", "2", "--num-cpus", "32"]
    driver = words[words.index("--") + 1 :]
    assert driver[:2] == ["env", "RAY_ADDRESS=192.0.2.1:6379"]
    parsed = search_arguments(driver[2:])
    assert (str(parsed["space_file"]), parsed["resume"], parsed["trials"]) == ("s.yaml", True, 5)
    assert driver[driver.index("--study") + 1] == STUDY


@pytest.mark.timeout(60)  # all of Ray's command line is loaded
def test_ray_knows_every_option_that_slurm_gives_it() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    text = (ROOT / "launch/slurm.sh").read_text()
    (call,) = re.findall(r"ray symmetric-run (.*?) -- ", text.replace("\\\n", " "))
    given = {word for word in call.split() if word.startswith("--")}
    known = {name for command in (symmetric_run, start) for p in command.params for name in p.opts}
    assert given
    assert given <= known
    assert given.isdisjoint({"--head", "--node-ip-address", "--port", "--block"})


def test_slurm_goes_back_into_the_queue_before_its_time_is_up(
    slurm: list[str], bin_folder: Path, tmp_path: Path
) -> None:
    running, stopped = tmp_path / "running", tmp_path / "stopped"
    stand_in(
        bin_folder,
        "srun",
        f"trap 'touch {stopped}; exit 143' TERM; touch {running}\n"
        "for _ in {1..400}; do sleep 0.02; done",
    )
    assert "#SBATCH --requeue" in Path(slurm[0]).read_text()
    assert "#SBATCH --signal=B:USR1@" in Path(slurm[0]).read_text()
    with subprocess.Popen(slurm) as job:
        while not running.exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=8) == 0
    assert stopped.exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"


# Kubernetes


def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "launch/kuberay.yaml").read_text()))


def test_the_rayjob_uses_known_fields() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    for dotted, fields in RAYJOB_FIELDS.items():
        section: Any = job
        for key in dotted.split("."):
            section = section[key]
        for entry in section if isinstance(section, list) else [section]:
            assert set(entry) <= set(fields.split()), dotted


def test_the_rayjob_resumes_its_study() -> None:
    job = rayjob()
    assert job["spec"]["backoffLimit"] > 0
    parsed = search_arguments(shlex.split(job["spec"]["entrypoint"]))
    assert parsed["resume"] is True
    folder = re.search(r"^WORKDIR (.*)$", dockerfile(), re.M)
    assert folder is not None
    in_image = Path(str(parsed["space_file"])).relative_to(folder[1])
    assert (ROOT / in_image).is_file()
    assert f"COPY --chown=ray {in_image.parent} {in_image.parent}\n" in dockerfile()


def dockerfile() -> str:
    return (ROOT / "launch/Dockerfile").read_text()


def test_images_have_the_tested_ray() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert re.findall(r"^FROM (.*)$", dockerfile(), re.M) == [
        f"rayproject/ray:{pinned[1]}-py311-gpu"
    ]
    assert "pip install --no-cache-dir --constraint constraints.txt ." in dockerfile()


# AWS: spot first


class FakeEC2:
    """Stands in for Ray's provider: launches unless it is told an error code."""

    refusal: str | None = None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def create_node(self, node_config: dict[str, Any], tags: Any, count: int) -> dict[str, Any]:
        from ray.autoscaler.node_launch_exception import NodeLaunchException

        self.asked.append(node_config)
        if self.refusal and "InstanceMarketOptions" in node_config:
            raise NodeLaunchException(self.refusal, "no", None)
        return {f"i-{number}": tags for number in range(count)}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our provider over `FakeEC2`, found as Ray finds it: by the name in cluster.yaml."""
    module = ModuleType("ray.autoscaler._private.aws.node_provider")
    module.AWSNodeProvider = FakeEC2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)  # the real one needs boto3
    monkeypatch.delitem(sys.modules, "csg_ray.scale.spot_provider", raising=False)
    provider = yaml.safe_load((ROOT / "cluster.yaml").read_text())["provider"]
    assert provider["type"] == "external"
    name, _, kind = provider["module"].rpartition(".")
    yield getattr(importlib.import_module(name), kind)()
    sys.modules.pop("csg_ray.scale.spot_provider", None)


SPOT = {"InstanceType": "g6.2xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}


def test_spot_where_there_is_some(provider: Any) -> None:
    assert provider.create_node(SPOT, "tags", 2) == {"i-0": "tags", "i-1": "tags"}
    assert provider.asked == [SPOT]


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded"])
def test_on_demand_where_there_is_none(provider: Any, code: str) -> None:
    provider.refusal = code
    assert provider.create_node(SPOT, "tags", 2) == {"i-0": "tags", "i-1": "tags"}
    assert provider.asked == [SPOT, {"InstanceType": "g6.2xlarge"}]


def test_other_refusals_stay_refusals(provider: Any) -> None:
    provider.refusal = "UnauthorizedOperation"
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        provider.create_node(SPOT, "tags", 1)
    assert provider.asked == [SPOT]


def test_rays_own_provider_has_the_method_that_ours_replaces() -> None:
    pytest.importorskip("boto3", reason="Ray's AWS provider needs it")
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    names = list(inspect.signature(AWSNodeProvider.create_node).parameters)
    assert names == ["self", "node_config", "tags", "count"]
