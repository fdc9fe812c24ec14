"""A server on this machine that serves files, and misbehaves when it is told to."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` (path → bytes) over HTTP; `requests` are those that came, in their order.

    `plan` is a list of behaviours, functions of (handler, server) from below: each request takes
    the next one, and where none is left, `serve`.
    """

    def __init__(self, **files):
        self.files = {f"/{name}": content for name, content in files.items()}
        self.tag = '"one"'  # the version that it tells: its ETag
        self.plan, self.requests = [], []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with lock:
                    outer.requests.append(self)
                    behaviour = outer.plan.pop(0) if outer.plan else serve
                # The client may hang up in mid-answer: that is what some tests are about.
                with contextlib.suppress(ConnectionError):
                    behaviour(self, outer)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def url(self, name):
        return f"{self.address}/{name}"

    def asked(self, header):
        """What the requests had in one header, None where it was missing."""
        return [request.headers[header] for request in self.requests]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


# How a server behaves.


def head(handler, status, length=None, **headers):
    """Send the beginning of an answer; Content_Range stands for Content-Range."""
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def asked_part(handler, server):
    """The file asked for; where the part of it begins and ends; whether that is not all of it."""
    content = server.files[re.sub("^http://[^/]*", "", handler.path)]
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers["Range"] or "")
    same = handler.headers["If-Range"] in (None, server.tag)
    if not found or not same:
        return content, 0, len(content), False
    start, last = int(found[1]), int(found[2] or len(content) - 1)
    return content, start, min(last + 1, len(content)), True


def serve(handler, server, most=None):
    """As HTTP has it: the part that was asked for, if the file is still the same."""
    content, start, stop, part = asked_part(handler, server)
    if start >= len(content):
        head(handler, 416, 0, Content_Range=f"bytes */{len(content)}")
        return
    headers = {"ETag": server.tag} if server.tag else {}
    if part:
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    head(handler, 206 if part else 200, stop - start, **headers)
    handler.wfile.write(content[start:stop][:most])


def cut(most):
    """Announces all, and hangs up after some bytes."""
    return lambda handler, server: serve(handler, server, most)


def cut_always(fraction):
    """Knows no parts, and hangs up in mid-file."""

    def behave(handler, server):
        content = asked_part(handler, server)[0]
        head(handler, 200, len(content))
        handler.wfile.write(content[: int(len(content) * fraction)])

    return behave


def status(code, **headers):
    """Refuses, with these headers."""
    return lambda handler, server: head(handler, code, 0, **headers)


def no_parts(handler, server):
    """Knows no parts: sends the whole file, whatever was asked for."""
    content = asked_part(handler, server)[0]
    head(handler, 200, len(content))
    handler.wfile.write(content)


def stitch(handler, server):
    """Sends the part that was asked for, though the file has changed: deaf to If-Range."""
    content = asked_part(handler, server)[0]
    start = int(re.search(r"\d+", handler.headers["Range"])[0])
    rest = content[start:]
    head(handler, 206, len(rest), Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.wfile.write(rest)


def announce(length):
    """Says that the file is so long, whatever is true; None to say nothing."""

    def behave(handler, server):
        head(handler, 200, length)
        handler.wfile.write(asked_part(handler, server)[0])

    return behave


def ranged(text):
    """Answers with this Content-Range, whatever was asked for."""
    return lambda handler, server: head(handler, 206, 0, Content_Range=text)


def web_page(handler, server):
    """What a hotel's network sends in place of everything."""
    page = b"<html>please log in</html>"
    head(handler, 200, len(page), Content_Type="text/html; charset=utf-8")
    handler.wfile.write(page)


def redirect(target):
    """Sends elsewhere."""
    return lambda handler, server: head(handler, 302, 0, Location=target)


def silent(handler, server):
    """Says nothing, until the client has gone."""
    handler.connection.settimeout(10)
    handler.rfile.read(1)


def noise(handler, server):
    """Speaks another language than HTTP."""
    handler.wfile.write(b"\0\1\2 hello\r\n")


def chunked(*pieces, ended=True):
    """Sends pieces whose sum nobody announced, and says at the end that it is the end, or not."""

    def behave(handler, server):
        head(handler, 200, Transfer_Encoding="chunked")
        for piece in pieces:
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if ended:
            handler.wfile.write(b"0\r\n\r\n")

    return behave
