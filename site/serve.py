"""Shows the built book: python site/serve.py, or make serve. Any other web server does as well."""

from __future__ import annotations

import argparse
import gzip
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMPRESSED = {".html", ".css", ".js", ".ipynb", ".txt"}
BOOK = Path(__file__).resolve().parent.parent / "_build" / "book"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, text compressed as web servers do, tells browsers to ask again after the next build, and logs nothing."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".woff2": "font/woff2",
        ".ipynb": "application/x-ipynb+json",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file() or "gzip" not in self.headers.get("Accept-Encoding", ""):
            return super().do_GET()
        body = gzip.compress(path.read_bytes(), mtime=0)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


def server(folder: Path, port: int = 0, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A server for `folder`, not yet running; port 0 takes a free one. Raises FileNotFoundError if nothing was built."""
    if not (folder / "index.html").exists():
        raise FileNotFoundError(f"{folder} holds no book: run make book first")
    return ThreadingHTTPServer((host, port), partial(Quiet, directory=str(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the built book on this machine.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines read it")
    parser.add_argument("--folder", type=Path, default=BOOK)
    options = parser.parse_args()
    try:
        http = server(options.folder, options.port, options.host)
    except OSError as error:
        print(
            f"{error}"
            if isinstance(error, FileNotFoundError)
            else f"port {options.port} cannot be used ({error.strerror}): choose another with --port",
            file=sys.stderr,
        )
        return 1
    print(f"the book is at http://{options.host}:{http.server_address[1]}/  (Ctrl-C stops)", flush=True)
    try:
        http.serve_forever()
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
