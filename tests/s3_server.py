"""An S3-compatible server in a thread of this process, and what can go wrong with one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from pyarrow.fs import S3FileSystem
from werkzeug.serving import make_server

BUCKET = "bucket"
_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>by the test</Message></Error>"


class S3Server:
    """moto's server on a free port, with one empty bucket.

    Attributes:
        fault: asked before each request, as "PUT /bucket/key?query", for the code of an error
            such as "403 AccessDenied" to answer with; None lets it pass.
    """

    def __init__(self) -> None:
        self.fault: Callable[[str], str | None] = let_pass
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        system = S3FileSystem(endpoint_override=self.endpoint, allow_bucket_creation=True)
        system.create_dir(BUCKET)

    def uri(self, key: str, bucket: str = BUCKET) -> str:
        """A place on this server."""
        return f"s3://{bucket}/{key}?endpoint_override={self.endpoint}&region=us-east-1"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = environ["QUERY_STRING"]
        path = environ["PATH_INFO"] + (f"?{query}" if query else "")
        error = self.fault(f"{environ['REQUEST_METHOD']} {path}")
        if error is None:
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, _, code = error.partition(" ")
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else _ERROR % code.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{status} {code}", headers)
        return [body]


def let_pass(request: str) -> str | None:
    """Nothing is wrong."""
    return None
