"""quantlib.zoo.fetch: a file is whole and checked, or it is not there. Packages here are made up; nothing leaves the machine."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

from quantlib.places import cache_folder
from quantlib.zoo import fetch as module
from quantlib.zoo.fetch import DamagedDownload, FetchError, Package, PackedFile, fetch, is_present

CONTENT = {"first.bin": bytes(range(256)) * 40, "second.bin": b"second" * 1000}


def pinned(name):
    content = CONTENT[name]
    return PackedFile(name, len(content), hashlib.sha256(content).hexdigest(), member=name)


class FakeIndex:
    """Something to download from: serves CONTENT, or what `serve` is told to do instead, attempt by attempt."""

    def __init__(self):
        self.attempts = 0
        self.instead = {}

    def __call__(self, package, scratch, report):
        self.attempts += 1
        act = self.instead.get(self.attempts, self.instead.get("always", whole))
        members = act(scratch)
        report(package.download_bytes)
        return members


def whole(scratch):
    return CONTENT


def half(scratch):
    return {name: content[: len(content) // 2] for name, content in CONTENT.items()}


def other_bytes(scratch):
    return {name: content[:-1] + b"?" for name, content in CONTENT.items()}


def raises(error):
    def act(scratch):
        (scratch / "first.bin").write_bytes(b"half of it")
        raise error

    return act


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("QUANTLIB_CACHE", str(folder))
    return folder


@pytest.fixture
def index():
    return FakeIndex()


@pytest.fixture
def package(index):
    return Package("The fake", "fake", "1.0", 20_000, (pinned("first.bin"), pinned("second.bin")), index)


def kept(folder):
    """What a user finds in the cache: everything but the lock, which is empty and stays."""
    return {path.name for path in folder.iterdir()} - {".fake.lock"} if folder.is_dir() else set()


def one_sentence(error, *parts):
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 500
    for part in parts:
        assert str(part) in text
    return True


def test_downloads_once_and_then_never_again(package, index, cache):
    paths = fetch(package)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert kept(cache) == set(CONTENT)
    index.instead["always"] = raises(AssertionError("asked the network although everything is here"))
    assert fetch(package) == paths and index.attempts == 1


def test_looking_reads_and_downloads_nothing(package, index, cache):
    assert not is_present(package) and package.paths == (cache / "first.bin", cache / "second.bin")
    assert index.attempts == 0 and not cache.exists()
    assert fetch(package) == package.paths and is_present(package)


@pytest.mark.parametrize("damage", [lambda b: b[:-1] + b"?", lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_file_damaged_in_the_cache_is_fetched_again(package, index, cache, damage):
    second = fetch(package)[1]
    second.write_bytes(damage(second.read_bytes()))
    assert not is_present(package)
    assert fetch(package)[1].read_bytes() == CONTENT["second.bin"] and index.attempts == 2


@pytest.mark.parametrize("damage", [half, other_bytes, raises(DamagedDownload("the line broke"))])
def test_a_damaged_download_is_repeated(package, index, cache, damage):
    index.instead[1] = damage
    assert fetch(package)[0].read_bytes() == CONTENT["first.bin"]
    assert index.attempts == 2 and kept(cache) == set(CONTENT)


@pytest.mark.parametrize("damage", [half, other_bytes, raises(DamagedDownload("the line broke"))])
def test_a_download_that_stays_damaged_is_given_up_and_not_kept(package, index, cache, damage):
    index.instead["always"] = damage
    with pytest.raises(FetchError) as caught:
        fetch(package)
    assert one_sentence(caught.value, "The fake (fake 1.0)", "damaged 3 times", "proxy")
    assert index.attempts == 3 and kept(cache) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FetchError("no network"), ValueError("a bug")])
def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(package, index, cache, error):
    index.instead[1] = raises(error)
    with pytest.raises(type(error)):
        fetch(package)
    assert kept(cache) == set()
    fetch(package)
    assert kept(cache) == set(CONTENT)


def test_what_a_killed_process_left_is_swept_away(package, cache):
    leftover = cache / ".fake.partial-x7"
    leftover.mkdir(parents=True)
    (leftover / "first.bin").write_bytes(b"half")
    fetch(package)
    assert kept(cache) == set(CONTENT)


def test_too_little_space_is_noticed_before_the_download(package, index, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    with pytest.raises(FetchError) as caught:
        fetch(package)
    assert one_sentence(caught.value, "needs 32 MB", "5.0 MB", cache, "QUANTLIB_CACHE")
    assert index.attempts == 0 and kept(cache) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a device that is always full, is Linux's")
def test_a_disk_that_fills_up_during_the_download(package, index, cache):
    def onto_a_full_disk(scratch):
        (scratch / "first.bin").symlink_to("/dev/full")
        return CONTENT

    index.instead["always"] = onto_a_full_disk
    with pytest.raises(FetchError) as caught:
        fetch(package)
    assert one_sentence(caught.value, "The fake was not kept", "is full", "QUANTLIB_CACHE")
    assert caught.value.__cause__.errno == errno.ENOSPC and index.attempts == 1 and kept(cache) == set()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("place", ["mkdir", "lock", "staging"])
def test_a_read_only_cache(package, index, cache, monkeypatch, code, place):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    # As root, permissions do not bind, so the refusal is put where the system would utter it.
    owner, name = {"mkdir": (Path, "mkdir"), "lock": (os, "open"), "staging": (module.tempfile, "mkdtemp")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(FetchError) as caught:
            fetch(package)
    assert one_sentence(caught.value, cache, "read-only", "QUANTLIB_CACHE")
    assert index.attempts == 0 and kept(cache) == set()


def test_a_read_only_cache_that_has_the_files_is_good_enough(package, cache, monkeypatch):
    paths = fetch(package)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert fetch(package) == paths


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission(package, cache):
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(FetchError, match="read-only"):
        fetch(package)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_where_the_cache_folder_should_be(package, cache, monkeypatch, inside):
    cache.write_text("not a folder")
    monkeypatch.setenv("QUANTLIB_CACHE", str(cache / inside))
    with pytest.raises(FetchError) as caught:
        fetch(package)
    assert one_sentence(caught.value, cache, "is a file where a folder should be", "QUANTLIB_CACHE")
    assert cache.read_text() == "not a folder"


def test_two_processes_at_once_download_once(cache, tmp_path):
    log = tmp_path / "downloads"
    script = textwrap.dedent(f"""
        import hashlib, time
        from quantlib.zoo.fetch import Package, PackedFile, fetch
        content = b"slow" * 1000
        def unpack(package, scratch, report):
            with open({str(log)!r}, "a") as stream:
                stream.write("x")
            (scratch / "slow.bin").write_bytes(content[:7])
            time.sleep(0.7)
            return {{"slow.bin": content}}
        file = PackedFile("slow.bin", len(content), hashlib.sha256(content).hexdigest(), "slow.bin")
        (path,) = fetch(Package("The slow", "slow", "1", 4000, (file,), unpack))
        assert path.read_bytes() == content
    """)
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert log.read_text() == "x"
    assert sum("waiting for another process" in text for text in errors) == 2


def test_one_member_can_hold_several_files(cache):
    parts = {"b": (20, b"B" * 5), "a": (7, b"A" * 10)}
    files = tuple(
        PackedFile(name, len(data), hashlib.sha256(data).hexdigest(), "m", offset) for name, (offset, data) in parts.items()
    )
    data = b"skipped" + b"A" * 10 + b"gap" + b"B" * 5 + b"rest"
    b, a = fetch(Package("Parts", "parts", "1", 100, files, lambda package, scratch, report: {"m": data}))
    assert a.read_bytes() == b"A" * 10 and b.read_bytes() == b"B" * 5
    cut = Package("Cut", "cut", "1", 100, (PackedFile("c", 5, files[0].sha256, "m", 20),), lambda *_: {"m": data[:22]})
    with pytest.raises(FetchError, match="arrived damaged"):
        fetch(cut)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("QUANTLIB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / ".cache" / "quantization-lessons"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "quantization-lessons"
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("QUANTLIB_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "quantization-lessons"
