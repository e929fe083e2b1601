"""The requests that LitData makes of S3 and of Google's storage, answered from a dictionary."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

GOOGLE = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, query = urlsplit(self.path)[2:4]
        google = GOOGLE.fullmatch(path)
        key = f"{google[1]}/{unquote(google[2])}" if google else unquote(path[1:])
        content = self.server.objects.get(key)
        if "list-type=2" in query:
            begun = f"{key}/{parse_qs(query)['prefix'][0]}"
            names = [name for name in self.server.objects if name.startswith(begun)]
            entries = [f"<Contents><Key>{n.partition('/')[2]}</Key></Contents>" for n in names]
            entries.append(f"<KeyCount>{len(names)}</KeyCount>")
            self.answer(200, f"<ListBucketResult>{''.join(entries)}</ListBucketResult>".encode())
        elif content is None:
            self.answer(404, b"" if google else b"<Error><Code>NoSuchKey</Code></Error>")
        elif google and "alt=media" not in query:
            about = {"name": key.partition("/")[2], "bucket": google[1], "size": len(content)}
            self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        elif part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(part[1]), min(int(part[2]), len(content) - 1)
            self.server.read += end + 1 - start
            total = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            self.answer(206, content[start : end + 1], total)
        else:
            self.server.read += len(content)
            self.answer(200, content)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = unchunked(body)
        self.server.objects[unquote(urlsplit(self.path).path[1:])] = body
        self.answer(200, b"")

    def answer(self, code, body, headers=None):
        self.send_response(code)
        for name, value in {"ETag": '"1"', **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def unchunked(body):
    """Return what boto3 has cut into pieces, each after a line with its length."""
    content = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        content, body = content + body[:size], body[size + 2 :]
    return content


@contextmanager
def fake_store(objects):
    """Yield a server of objects: bytes by "bucket/key"; `read` counts the bytes it has given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.objects, server.read = objects, 0
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
