"""Paths on URIs, and the stores behind them: like pathlib, whole or not there, quick to fail."""

from __future__ import annotations

import errno
import json
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileInfo, FileSelector, FileType

from csg_ray.config.errors import UserError
from csg_ray.storage.folders import check_writable, in_parallel, remove_tree, subfolders
from csg_ray.storage.objects import delete_folder, list_folder
from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from csg_ray.storage.records import write_atomically
from csg_ray.storage.stores import StorageError, Store, connect
from s3_server import S3Server, let_pass

MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("studies/digits", Path("studies/digits")),
        ("file:///mnt/nfs/a%20b", Path("/mnt/nfs/a b")),
        ("s3://bucket", RemotePath("s3", "bucket", "")),
        ("S3://bucket//a/./b/", RemotePath("s3", "bucket", "a/b")),
        ("gs://bucket/.a b", RemotePath("gs", "bucket", ".a b")),
        (
            "s3://bucket/a?endpoint_override=http://h:1&scheme=http",
            RemotePath("s3", "bucket", "a", "endpoint_override=http://h:1&scheme=http"),
        ),
    ],
)
def test_a_place_is_what_its_text_says(text: str, path: StoragePath) -> None:
    assert open_path(text) == path
    assert open_path(str(path)) == path
    assert open_path(path) is path


def test_the_query_stays_behind_the_path() -> None:
    base = open_path("s3://bucket/a b?region=eu-1")
    state = base / "trials" / "0001" / "state.json"
    assert str(state) == "s3://bucket/a%20b/trials/0001/state.json?region=eu-1"
    assert open_path(str(state)) == state
    assert (state.name, state.suffix, state.parent.name) == ("state.json", ".json", "0001")
    assert state.parent.parent.parent == base
    assert state.with_name("params.json") == state.parent / "params.json"
    assert str(open_path("s3://bucket") / "a") == "s3://bucket/a"


def test_a_path_on_a_uri_can_be_sent_to_another_process_and_stand_in_a_set() -> None:
    path = open_path("s3://bucket/a?region=eu-1")
    assert pickle.loads(pickle.dumps(path)) == path
    assert len({path, open_path("s3://bucket/a/?region=eu-1"), path / "b"}) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("foo://x", r"unknown scheme 'foo' in foo://x: allowed: abfs, .*, s3"),
        ("s4://x", "did you mean 's3'"),
        ("s3:/bucket/a", "write s3://bucket/a"),
        ("file://mnt/a", "names a host; write file:///mnt/a"),
        ("s3:///a", "names no bucket; write s3://BUCKET/FOLDER"),
        ("s3://key:secret@bucket/a", "the URI of s3://bucket holds credentials"),
        ("s3://bucket/a?verbose", "unknown option 'verbose'"),
        ("s3://bucket/a?regionn=x", "unknown option 'regionn' in the URI .*did you mean 'region'"),
    ],
)
def test_what_is_no_place_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        open_path(text)
    assert "secret" not in str(caught.value)


def test_objects_are_read_and_written_as_files_are(place: StoragePath) -> None:
    folder = place / "study"
    assert not folder.exists()
    folder.mkdir(parents=True)
    write_atomically(folder / "b.txt", "old")
    write_atomically(folder / "b.txt", "new \u00e4")
    (folder / "deep").mkdir()
    (folder / "deep" / "a.bin").write_bytes(b"\0\1")
    assert (folder / "b.txt").read_text(encoding="utf-8") == "new \u00e4"
    assert (folder / "deep" / "a.bin").read_bytes() == b"\0\1"
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "deep"]
    assert subfolders(folder) == [folder / "deep"]
    kinds = [(path.exists(), path.is_file(), path.is_dir()) for path in folder.iterdir()]
    assert sorted(kinds) == [(True, False, True), (True, True, False)]
    (folder / "b.txt").unlink()
    assert not (folder / "b.txt").exists()
    (folder / "b.txt").unlink(missing_ok=True)
    remove_tree(folder)
    assert not folder.exists()
    assert subfolders(folder) == []


def test_what_is_missing_is_a_missing_file(place: StoragePath) -> None:
    missing = place / "nothing"
    for act in (
        missing.read_bytes,
        missing.read_text,
        missing.unlink,
        lambda: remove_tree(missing),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == str(missing)


def test_a_large_object_goes_up_in_parts_and_comes_back(s3: S3Server, uri: RemotePath) -> None:
    asked: list[str] = []
    s3.fault = asked.append
    content = bytes(range(256)) * (25 * MEGABYTE // 256)
    (uri / "checkpoint.pt").write_bytes(memoryview(content))
    assert sum("partNumber" in request for request in asked) == 3
    asked.clear()
    assert (uri / "checkpoint.pt").read_bytes() == content
    assert len(asked) == 3, "not a request for each buffer"


def test_a_small_object_is_one_request(s3: S3Server, uri: RemotePath) -> None:
    asked: list[str] = []
    s3.fault = asked.append
    (uri / "state.json").write_bytes(b"{}")
    assert [request.split()[0] for request in asked] == ["PUT"]


def test_a_part_that_fails_leaves_the_old_object_whole(s3: S3Server, uri: RemotePath) -> None:
    path = uri / "checkpoint.pt"
    path.write_bytes(b"old")
    s3.fault = lambda request: "403 AccessDenied" if "partNumber=2" in request else None
    with pytest.raises(StorageError, match="access is denied"):
        path.write_bytes(bytes(25 * MEGABYTE))
    s3.fault = lambda request: None
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("content", [b'"written anew, and longer"', b'"a"'])
def test_what_is_written_anew_while_it_is_read_is_not_torn(
    s3: S3Server, uri: RemotePath, content: bytes
) -> None:
    path = uri / "study.yaml"

    def write_anew(request: str) -> None:
        if request.startswith("GET"):  # between the question for the size and that for the content
            s3.fault = let_pass
            path.write_bytes(content)

    for read, result in ((path.read_bytes, content), (path.read_json, json.loads(content))):
        path.write_bytes(b'"as it was"')
        s3.fault = write_anew
        assert read() == result


@pytest.mark.parametrize("content", [b"{}", bytes(5000)])
def test_what_is_deleted_while_it_is_read_is_missing(
    s3: S3Server, uri: RemotePath, content: bytes
) -> None:
    path = uri / "claim.json"
    path.write_bytes(content)

    def delete(request: str) -> None:
        if request.startswith("GET"):
            s3.fault = let_pass
            path.unlink()

    s3.fault = delete
    with pytest.raises(FileNotFoundError):
        path.read_json()


@pytest.mark.parametrize("size", [2, 5000])
def test_a_store_that_is_asked_too_much_is_asked_again(
    s3: S3Server, uri: RemotePath, size: int
) -> None:
    path = uri / "state.json"
    path.write_bytes(bytes(size))
    busy = ["503 SlowDown"]
    s3.fault = lambda request: busy.pop() if request.startswith("GET") and busy else None
    assert path.read_bytes() == bytes(size)
    assert not busy


class Gcs:
    """What pyarrow makes of GCS: no folder but those that have an object of their own."""

    type_name = "gcs"

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)

    def get_file_info(self, asked: str | FileSelector) -> FileInfo | list[FileInfo]:
        if isinstance(asked, FileSelector):
            prefix = f"{asked.base_dir}/"
            found = [key for key in sorted(self.keys) if key.startswith(prefix)]
            if not asked.recursive:
                found = [key for key in found if "/" not in key.removeprefix(prefix)]
            return [FileInfo(key, FileType.File) for key in found]
        folder = any(key.startswith(f"{asked}/") for key in self.keys)
        return FileInfo(asked, FileType.Directory if folder else FileType.NotFound)

    def delete_dir(self, place: str) -> None:
        raise OSError(f"No such directory: {place}")

    def delete_dir_contents(self, place: str, missing_dir_ok: bool) -> None:
        self.keys = {key for key in self.keys if not key.startswith(f"{place}/")}


def test_folders_of_gcs_are_what_the_names_of_its_objects_say() -> None:
    system = Gcs("b/s/study.yaml", "b/s/trials/0001/params.json", "b/s/trials/0001/results/1.json")
    assert list_folder(system, "b/s") == {"study.yaml": False, "trials": True}
    assert list_folder(system, "b/s/trials/0001") == {"params.json": False, "results": True}
    assert list_folder(system, "b/none") == {}
    delete_folder(system, "b/s/trials")
    assert list_folder(system, "b/s") == {"study.yaml": False}
    with pytest.raises(FileNotFoundError):
        delete_folder(system, "b/s/trials")


class SignalOnOpening:
    """A file system on which Ctrl-C comes just after an object was opened for writing."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def open_output_stream(self, place: str) -> Any:
        stream = self._system.open_output_stream(place)
        signal.raise_signal(signal.SIGINT)
        return stream


def test_an_interrupt_leaves_no_half_of_an_object(
    uri: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow publishes what it has when a stream is closed by an exception."""
    path = uri / "state.json"
    path.write_bytes(b"old")
    store = connect(uri.scheme, uri.bucket, uri.query)
    system, root = store._patient
    monkeypatch.setitem(vars(store), "_patient", (SignalOnOpening(system), root))
    with pytest.raises(KeyboardInterrupt):
        path.write_bytes(b"the new content")
    monkeypatch.undo()
    deadline = time.monotonic() + 5
    while (content := path.read_bytes()) == b"old":
        assert time.monotonic() < deadline
    assert content == b"the new content"


def test_a_folder_is_tried_out_and_left_as_it_was(place: StoragePath) -> None:
    check_writable(place)
    assert list(place.iterdir()) == []


def test_results_come_in_order_and_errors_come_through() -> None:
    begun = threading.Barrier(3, timeout=5)

    def slow(number: int) -> int:
        begun.wait()  # passes only when three are at work at a time
        return number * number

    assert in_parallel(slow, [3, 1, 2], 3) == [9, 1, 4]
    assert in_parallel(slow, [], 3) == []
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // number, [1, 0], 2)


def test_a_first_contact_fails_soon_and_a_later_one_is_patient(s3: S3Server) -> None:
    store = Store("s3", "bucket", f"endpoint_override={s3.endpoint}")
    failures = [2]
    asked: list[str] = []

    def busy(request: str) -> str | None:
        asked.append(request)
        failures[0] -= 1
        return "503 SlowDown" if failures[0] >= 0 else None

    s3.fault = busy
    with pytest.raises(StorageError, match="cannot be reached"):
        store.run(lambda system, place: system.get_file_info(place), "a", "s3://bucket/a")
    assert len(asked) == 2
    store.run(lambda system, place: system.get_file_info(place), "a", "s3://bucket/a")
    failures[0] = 2  # as many as were too many
    store.run(lambda system, place: system.get_file_info(place), "a", "s3://bucket/a")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_may_name_the_endpoint(
    s3: S3Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, s3.endpoint)
    store = Store("s3", "bucket", "")
    info = store.run(lambda system, place: system.get_file_info(place), "", "s3://bucket")
    assert info.base_name == "bucket"


def test_an_error_of_a_store_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(StorageError("it is away", "s3://bucket/a")))
    assert (error.strerror, error.filename) == ("it is away", "s3://bucket/a")
    assert str(error) == "s3://bucket/a: it is away"
