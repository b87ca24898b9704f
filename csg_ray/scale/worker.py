"""One of several processes that train one model under Ray Train."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import ray
import torch
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from csg_ray.config.run import RunConfig
from csg_ray.distributed import rank
from csg_ray.storage.paths import open_path
from csg_ray.storage.records import CHECKPOINT_FILE
from csg_ray.training.loop import Metrics, fit
from csg_ray.training.pictures import Pictures
from csg_ray.training.recorder import EpochRecorder

_SIOCGIFADDR = 0x8915


def train_worker(job: dict[str, Any]) -> None:
    """Train as one rank; rank 0 keeps the files, from which whoever started it reads on.

    Nothing is reported to Ray Train, whose controller takes one report every two seconds, and
    nothing is stored through it: checkpoint and epochs are in the directory before the next epoch
    begins.

    Args:
        job: `directory`, `settings` (those to be shown), `config` (a RunConfig as a mapping),
            `repeats`, `threads`.
    """
    torch.set_num_threads(job["threads"])
    directory = open_path(job["directory"])
    checkpoint = directory / CHECKPOINT_FILE
    config = RunConfig.model_validate(job["config"])
    recorder = None
    if rank() == 0:
        recorder = EpochRecorder(directory, job["settings"], config.train.epochs)

    def on_epoch_end(metrics: Metrics, save_checkpoint: Any, pictures: Pictures | None) -> None:
        assert recorder is not None  # only rank 0 reports
        recorder(metrics, save_checkpoint, pictures)

    try:
        fit(
            config,
            on_epoch_end,
            resume_from=checkpoint if checkpoint.exists() else None,
            repeats=job["repeats"],
        )
    finally:
        if recorder is not None:
            recorder.close()


class NodeAddressTorchConfig(TorchConfig):
    """Torch's process group on the network that Ray itself uses.

    Left alone, gloo and NCCL take the interface that the host's name resolves to. On Debian and in
    many containers that is the loopback, and workers of different hosts then never meet.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that Ray Train sets up."""
        return _NodeAddressBackend


class _NodeAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchConfig)
        worker_group.execute(_use_rays_network)
        super().on_start(worker_group, backend_config)


def _use_rays_network() -> None:
    name = _interface_of(ray.util.get_node_ip_address())
    if name is not None:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)


def _interface_of(address: str) -> str | None:
    """The network interface with an IPv4 address; None where the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name[:15].encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
