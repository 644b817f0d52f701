"""Buckets without a network: what epath, and what TensorStore's own C++ client, see as gs://.

Objects appear whole when they are closed, cannot be added to or renamed, and folders exist as long as something is
in them. epath goes through fsspec, where `FileSystem` stands in for gcsfs; Orbax's arrays go through TensorStore,
which speaks to a server on this machine.
"""

import http.server
import io
import itertools
import json
import threading
import time
import urllib.parse
from typing import NamedTuple

import fsspec


class Stored(NamedTuple):
    content: bytes
    generation: int
    written: float


class Store:
    """The objects of all buckets, by "bucket/name"; `failure`, where set, is what every request ends in."""

    def __init__(self):
        self.buckets, self.objects, self.failure = {"bucket"}, {}, None
        self.reads = 0  # of open files: each is a request in the worst case
        self.generations, self.lock = itertools.count(1), threading.Lock()

    def __getitem__(self, key):
        if self.failure:
            raise self.failure
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def under(self, folder):
        if self.failure:
            raise self.failure
        return sorted(key for key in list(self.objects) if key.startswith(f"{folder}/"))

    def put(self, key, content):
        if self.failure:
            raise self.failure
        if key.partition("/")[0] not in self.buckets:
            raise FileNotFoundError(key)
        self.objects[key] = Stored(bytes(content), next(self.generations), time.time())
        return self.objects[key]


class _Upload(io.BytesIO):
    def __init__(self, store, key):
        super().__init__()
        self._store, self._key = store, key

    def close(self):
        if not self.closed:
            self._store.put(self._key, self.getvalue())
        super().close()


class _Download(io.BytesIO):
    def __init__(self, store, content):
        super().__init__(content)
        self._store = store

    def read(self, *size):
        self._store.reads += 1
        return super().read(*size)

    def readinto(self, buffer):
        self._store.reads += 1
        return super().readinto(buffer)


class FileSystem(fsspec.AbstractFileSystem):
    protocol, cachable, store = ("gs", "gcs"), False, None

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        depth, found = path.count("/") + 2, {}
        for key in self.store.under(path):
            found["/".join(key.split("/")[:depth])] = None
        if not found:
            found[path] = self.store[path]
        infos = [self.info(name) for name in found]
        return infos if detail else [info["name"] for info in infos]

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in self.store.objects and not self.store.failure:
            stored = self.store[path]
            return {"name": path, "type": "file", "size": len(stored.content), "mtime": stored.written}
        if not self.store.under(path):
            raise FileNotFoundError(path)
        return {"name": path, "type": "directory", "size": 0}

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return _Download(self.store, self.store[path].content)
        assert mode == "wb", f"objects cannot be opened with mode {mode}"
        return _Upload(self.store, path)

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        found = [path, *(self.store.under(path) if recursive else [])]
        if not sum(self.store.objects.pop(key, None) is not None for key in found):
            raise FileNotFoundError(path)

    def mkdir(self, path, create_parents=True, **_):
        """Folders need not be made."""

    def makedirs(self, path, exist_ok=False):
        """Folders need not be made."""

    def mv(self, *_, **__):
        raise AssertionError("objects cannot be renamed")

    rename = mv


class _Handler(http.server.BaseHTTPRequestHandler):
    """The part of Cloud Storage's JSON interface that TensorStore uses."""

    protocol_version, store = "HTTP/1.1", None

    def do_GET(self):
        bucket, name, query = self._asked()
        key = f"{bucket}/{name}"
        with self.store.lock:
            if not name:
                found = sorted(k for k in self.store.objects if k.startswith(key + query.get("prefix", "")))
                self._answer(200, json.dumps({"items": [self._about(key) for key in found]}).encode())
            elif key not in self.store.objects:
                self._answer(404)
            elif not self._refused(key, query):
                self._send(*self.store.objects[key][:2])

    def do_POST(self):
        bucket, name, query = self._asked()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = f"{bucket}/{name}"
        with self.store.lock:
            if not self._refused(key, query):
                self.store.put(key, content)
                self._answer(200, json.dumps(self._about(key)).encode())

    def do_DELETE(self):
        bucket, name, query = self._asked()
        key = f"{bucket}/{name}"
        with self.store.lock:
            if not self._refused(key, query):
                self._answer(204 if self.store.objects.pop(key, None) else 404)

    def log_message(self, *_):
        """Says nothing."""

    def _asked(self):
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        return bucket, urllib.parse.unquote(name.removeprefix("/")) or query.get("name", ""), query

    def _about(self, key):
        bucket, _, name = key.partition("/")
        stored = self.store.objects[key]
        size, generation = len(stored.content), stored.generation
        return {"name": name, "bucket": bucket, "generation": str(generation), "size": str(size)}

    def _refused(self, key, query):
        generation = self.store.objects[key].generation if key in self.store.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            self._answer(412)
        elif "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            self._answer(304)
        else:
            return False
        return True

    def _send(self, content, generation):
        headers, wanted = {"x-goog-generation": str(generation)}, self.headers.get("Range")
        if wanted is None:
            self._answer(200, content, headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        part = content[start : int(last) + 1 if first and last else len(content)]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._answer(206, part, headers)

    def _answer(self, status, content=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def serve(store):
    """Starts a server of a store's objects on this machine and returns it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
