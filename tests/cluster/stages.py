"""What is done with the cluster, in order. Each takes the hosts that are there, the head first."""

from __future__ import annotations

import re
import time
from pathlib import Path

import yaml
from lab import Host, wait_until
from ray_cluster import RayCluster, finish

from csg_ray.results.study import load_study

SPACE = "search_spaces/digits.yaml"
TRIALS, EPOCHS = 5, 5
SETTINGS = (
    f"train.epochs={EPOCHS}",
    "data.num_train=128",
    "data.num_val=20",
    "search.scheduler=none",
)


def bring_up(cluster: RayCluster, hosts: list[Host]) -> None:
    """Every host joins; a client without the token is turned away."""
    cluster.up(seconds=300)
    nodes = cluster.nodes(len(hosts), seconds=300)
    assert nodes == sorted(host.address for host in hosts), nodes
    assert "InvalidAuthToken" in cluster.stranger(hosts[0].address, seconds=300)


def train_on_two_hosts(cluster: RayCluster, hosts: list[Host]) -> None:
    """A run of two workers: each host has room for one."""
    config = {"data": {"num_train": 64, "num_val": 20}, "train": {"epochs": 2}}
    (cluster.storage / "run.yaml").write_text(yaml.safe_dump(config))
    command = f"cd {cluster.storage} && csg-ray train run.yaml --workers 2 --out run"
    training = cluster.start_on_head("train", command)
    seen: dict[str, set[str]] = {}

    def spread_or_over() -> bool:
        at_work = {host.name for host in hosts if _runs(host, "RayTrainWorker")}
        seen.setdefault("hosts", set()).update(at_work)
        return len(at_work) == 2 or training.poll() is not None

    wait_until("workers on two hosts", spread_or_over, seconds=300)
    assert finish(training, "train", seconds=300) == 0
    assert len(seen["hosts"]) == 2, seen
    lines = (cluster.storage / "run" / "result.json").read_text().splitlines()
    assert len(lines) == 2, lines


def lose_a_host(cluster: RayCluster, hosts: list[Host]) -> None:
    """A study over all hosts, one of which dies under a trial: the study finishes, whole."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    options = ["--trials", str(TRIALS), *settings]
    search = cluster.submit("search", SPACE, cluster.storage / "study", *options)
    trials = cluster.storage / "study" / "trials"

    def at_work() -> list[tuple[Host, Path, int]]:
        """Trials early on worker hosts, once two hosts have finished an epoch of theirs."""
        if search.poll() is not None:
            raise RuntimeError("the search ended before a host was lost")
        written = {folder: _writers(folder) for folder in trials.glob("*")}
        if len({name for names in written.values() for name in names}) < 2:
            return []
        return [
            (host, folder, epoch)
            for folder, names in written.items()
            for host in hosts[1:]
            if names[-1:] == [host.name] and (epoch := _epochs(folder)) in (1, 2)
        ]

    host, trial, epoch = wait_until("a trial at work on a worker", at_work, seconds=300)[0]
    host.power_off()
    died = time.time()
    print(f"  {host.name} died under trial {trial.name}, after epoch {epoch}", flush=True)
    hosts.remove(host)
    assert finish(search, "search", seconds=300) == 0
    study = load_study(cluster.storage / "study")
    assert [t.id for t in study.trials] == [f"{n:04d}" for n in range(1, TRIALS + 1)]
    for each in study.trials:
        assert each.state == "completed", each
        assert [line["epoch"] for line in each.results] == list(range(1, EPOCHS + 1)), each
    assert len(set(_writers(trial))) == 2, "the trial did not move to another host"
    again = float(_event_files(trial)[-1].name.split(".")[3])
    print(f"  trial {trial.name} goes on after {again - died:.0f} s elsewhere", flush=True)


def refuse_a_local_study(cluster: RayCluster, hosts: list[Host]) -> None:
    """A study on the head's own disk: one sentence, and nothing begun."""
    command = f"csg-ray search ~/csg_ray/{SPACE} --study /tmp/mine/study"
    printed = cluster.on_head("refused", command, seconds=300, fails=True)
    (sentence,) = re.findall(r"^csg-ray: (.*?)\r?$", printed, flags=re.MULTILINE)
    assert "/tmp/mine/study" in sentence, sentence
    assert hosts[1].address in sentence, sentence
    assert "Traceback" not in printed
    assert not (hosts[0].folder / "tmp" / "mine").exists()


def take_down(cluster: RayCluster, hosts: list[Host]) -> None:
    """`ray down` leaves no process on any host."""
    cluster.down(seconds=300)

    def left() -> list[str]:
        return [f"{host.name}: {line[:120]}" for host in hosts for line in host.commands()]

    try:
        wait_until("every process has ended", lambda: not left(), seconds=300)
    except TimeoutError as error:
        raise TimeoutError("\n".join([str(error), *left()])) from None


STAGES = (bring_up, train_on_two_hosts, lose_a_host, refuse_a_local_study, take_down)


def _runs(host: Host, name: str) -> bool:
    return any(name in command for command in host.commands())


def _writers(trial: Path) -> list[str]:
    """The hosts that wrote the trial's TensorBoard files, in their order; the names say it.

    events.out.tfevents.SECONDS.HOST.NANOSECONDS
    """
    ends = [file.name.split(".", maxsplit=4)[4] for file in _event_files(trial)]
    return [end.rpartition(".")[0] for end in ends]


def _event_files(trial: Path) -> list[Path]:
    return sorted(trial.glob("events.out.tfevents.*"))


def _epochs(trial: Path) -> int:
    results = trial / "result.json"
    return len(results.read_text().splitlines()) if results.exists() else 0
