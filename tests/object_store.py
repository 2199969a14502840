"""A small S3 server in this process: what pyarrow's client asks of one, over objects in a dictionary.

As in any object store an object appears whole, when its upload is complete, and nothing can be renamed.
"""

import contextlib
import io
import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET = "bucket"
_REFUSED = "<Error><Code>AccessDenied</Code><Message>the store takes no more writes</Message></Error>"


class ObjectStore:
    """Its objects, and what it is asked. `url(path)` opens with `data.filesystem.open_fs`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        """Key -> content; keys that end in `/` are pyarrow's markers of folders"""
        self.times: dict[str, float] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        """Parts of uploads that are not complete"""
        self.writes: list[str] = []
        """Method and key of all that changed something, or tried to"""
        self.writes_left: int | None = None
        """So many are still taken, then all are refused, deletions too: as after the power of a writer has gone"""
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))

    def url(self, path: str) -> str:
        address = f"127.0.0.1:{self.server.server_port}"
        return f"s3://{BUCKET}/{path}?scheme=http&region=us-east-1&endpoint_override={address}"

    def files(self, prefix: str = "") -> dict[str, bytes]:
        """Objects whose key begins with `prefix`, without the markers of folders."""
        return {key: self.objects[key] for key in sorted(self.objects) if key.startswith(prefix) and key[-1] != "/"}

    def put(self, key: str, content: bytes) -> None:
        self.objects[key], self.times[key] = content, time.time()


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    thread = threading.Thread(target=store.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together: else each answer waits 40 ms for an acknowledgement
    disable_nagle_algorithm = True
    store: ObjectStore

    def log_message(self, *_: Any) -> None:
        """The requests are not printed."""

    def handle_expect_100(self) -> bool:
        """The client waits a second for it before it sends what it has."""
        told = super().handle_expect_100()
        self.wfile.flush()
        return told

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        if key and key not in self.store.objects:
            self._answer(404)
        else:
            self._send(self.store.objects.get(key, b""), key)

    def do_GET(self) -> None:
        key, query = self._asked()
        if not key:
            self._answer(200, self._listing(query))
        elif key not in self.store.objects:
            self._answer(404, f"<Error><Code>NoSuchKey</Code><Key>{escape(key)}</Key></Error>")
        else:
            self._send(self.store.objects[key], key)

    def do_PUT(self) -> None:
        key, query = self._asked()
        content = self._body()
        if not self._may_write(key):
            return
        if (source := self.headers.get("x-amz-copy-source")) is not None:
            copied = self.store.objects[unquote(source).lstrip("/").removeprefix(f"{BUCKET}/")]
            self.store.put(key, copied)
            self._answer(200, '<CopyObjectResult><ETag>"copied"</ETag></CopyObjectResult>')
        elif "uploadId" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = content
            self._answer(200, etag=query["partNumber"])
        else:
            self.store.put(key, content)
            self._answer(200, etag="whole")

    def do_POST(self) -> None:
        key, query = self._asked()
        content = self._body()
        if not self._may_write(key):
            return
        if "uploads" in query:
            number = f"upload-{len(self.store.writes)}"
            self.store.uploads[number] = {}
            answer = "InitiateMultipartUploadResult"
            self._answer(200, f"<{answer}><UploadId>{number}</UploadId></{answer}>")
        elif "uploadId" in query:
            parts = self.store.uploads.pop(query["uploadId"])
            self.store.put(key, b"".join(parts[number] for number in sorted(parts)))
            self._answer(200, '<CompleteMultipartUploadResult><ETag>"parts"</ETag></CompleteMultipartUploadResult>')
        else:
            named = [found.text or "" for found in ElementTree.fromstring(content).iter() if found.tag.endswith("Key")]
            for name in named:
                self.store.objects.pop(name, None)
            self._answer(200, "<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        key, query = self._asked()
        if not self._may_write(key):
            return
        if "uploadId" in query:
            self.store.uploads.pop(query["uploadId"], None)
        else:
            self.store.objects.pop(key, None)
        self._answer(204)

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/"), query

    def _may_write(self, key: str) -> bool:
        with self.store.lock:
            self.store.writes.append(f"{self.command} {key}")
            if self.store.writes_left is not None:
                if self.store.writes_left == 0:
                    self._answer(403, _REFUSED)
                    return False
                self.store.writes_left -= 1
        return True

    def _body(self) -> bytes:
        """What was sent, out of the chunks of HTTP and within them those of the client, which add a checksum."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = _joined(self.rfile)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return _joined(io.BytesIO(content)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else content

    def _listing(self, query: dict[str, str]) -> str:
        """Of ListObjectsV2, all at once."""
        prefix, delimiter, folders, lines = query.get("prefix", ""), query.get("delimiter", ""), set(), []
        for key in sorted(key for key in list(self.store.objects) if key.startswith(prefix)):
            below = key[len(prefix) :]
            if delimiter and delimiter in below:
                folders.add(prefix + below.split(delimiter)[0] + delimiter)
                continue
            stamp = self.store.times[key]
            date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp)) + f".{int(stamp % 1 * 1000):03d}Z"
            size = len(self.store.objects[key])
            lines.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{date}</LastModified><Size>{size}</Size></Contents>"
            )
        lines += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        return (
            f"<ListBucketResult><KeyCount>{len(lines)}</KeyCount><IsTruncated>false</IsTruncated>"
            f"{''.join(lines)}</ListBucketResult>"
        )

    def _send(self, content: bytes, key: str) -> None:
        """An object, or the part of it that is asked for."""
        stamp = formatdate(self.store.times.get(key, 0), usegmt=True)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content[int(found[1]) : int(found[2]) + 1] if found else content
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{len(content)}")
        if key.endswith("/"):
            self.send_header("Content-Type", "application/x-directory")
        self.send_header("Last-Modified", stamp)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def _answer(self, status: int, text: str = "", etag: str = "") -> None:
        content = text.encode()
        self.send_response(status)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _joined(stream: IO[bytes]) -> bytes:
    """The content of chunks: each after its size, in hexadecimal digits on a line; further lines after the last."""
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(parts)
