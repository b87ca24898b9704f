"""How long `csg-ray best` reads a study on a URI, when each request takes its time on the way.

    python benchmarks/uri_study.py

A process of its own stands for the store: it answers from memory, 20 ms after it was asked, which
is what S3 takes within a region. Read are a study of 30 trials, as the program does it and with one
request at a time, and one of 300. Nothing is written.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit

from csg_ray.results import study as studies
from csg_ray.search_space import load_search_space
from csg_ray.storage import records

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
DELAY, EPOCHS = 0.020, 9
REQUESTS_PER_TRIAL = 1 + 2 + 2 + 2 * EPOCHS  # listing, state, params, epochs; size and content each


def study_objects(name: str, trials: int) -> dict[str, bytes]:
    """The objects of a finished study."""
    space = load_search_space(SPACE)
    header = {"format": 1, "space": space.to_mapping(), "provenance": {}}
    objects = {f"/bucket/{name}/study.yaml": json.dumps(header).encode()}
    for number in range(1, trials + 1):
        folder = f"/bucket/{name}/trials/{number:04d}"
        params = {"id": f"{number:04d}", "params": space.first_point(), "origin": "sampler"}
        objects[f"{folder}/params.json"] = json.dumps(params).encode()
        objects[f"{folder}/state.json"] = b'{"state": "completed"}'
        for epoch in range(1, EPOCHS + 1):
            metrics = {f"target_val/metric_{i}": 0.123456789 for i in range(25)}
            line = {"epoch": epoch, "diverged": 0, **metrics}
            objects[f"{folder}/results/{epoch:06d}.json"] = json.dumps(line).encode()
    return objects


def list_objects(objects: Mapping[str, bytes], prefix: str) -> bytes:
    """S3's answer to what is directly below a prefix."""
    below = [key.removeprefix("/bucket/") for key in objects]
    names = {key[len(prefix) :].partition("/")[::2] for key in below if key.startswith(prefix)}
    found = "".join(
        f"<CommonPrefixes><Prefix>{prefix}{name}/</Prefix></CommonPrefixes>"
        if rest
        else f"<Contents><Key>{prefix}{name}</Key><Size>1</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for name, rest in sorted(dict(sorted(names)).items())
    )
    return f"<?xml version='1.0'?><ListBucketResult>{found}</ListBucketResult>".encode()


def answer(objects: Mapping[str, bytes], request: str) -> bytes:
    """A whole HTTP response to the first line of a request."""
    method, target, _ = request.split(" ")
    parts = urlsplit(target)
    query = parse_qs(parts.query)
    if "list-type" in query:
        body: bytes | None = list_objects(objects, query["prefix"][0])
    else:
        body = objects.get(unquote(parts.path))
    status = "404 Not Found" if body is None else "200 OK"
    date = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body or b'')}\r\n{date}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" or body is None else body)


def serve(ready: Connection, objects: Mapping[str, bytes]) -> None:
    """Answer for ever."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(DELAY)
            writer.write(answer(objects, head.partition(b"\r\n")[0].decode()))

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def seconds(uri: str, trials: int) -> float:
    """Time to load a study, which must be whole."""
    began = time.perf_counter()
    study = studies.load_study(uri)
    taken = time.perf_counter() - began
    assert len(study.top(trials)) == 0  # made-up metrics: nothing ranks, but everything was read
    assert sum(trial.epoch for trial in study.trials) == trials * EPOCHS
    return taken


def main() -> None:
    """Print the three figures."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    objects = study_objects("small", 30) | study_objects("large", 300)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, objects), daemon=True)
    server.start()
    endpoint = f"?endpoint_override=http://127.0.0.1:{ours.recv()}&region=us-east-1"
    seconds(f"s3://bucket/small{endpoint}", 30)  # connections are made
    small = seconds(f"s3://bucket/small{endpoint}", 30)
    with patch.object(studies, "THREADS", 1), patch.object(records, "THREADS", 1):
        one = seconds(f"s3://bucket/small{endpoint}", 30)
    large = seconds(f"s3://bucket/large{endpoint}", 300)
    server.terminate()
    print(f"{DELAY * 1000:.0f} ms a request, {REQUESTS_PER_TRIAL} requests a trial")
    print(f" 30 trials, one request at a time  {one:6.1f} s")
    print(f" 30 trials                         {small:6.1f} s  ({one / small:.1f} x faster)")
    print(f"300 trials                         {large:6.1f} s")


if __name__ == "__main__":
    main()
