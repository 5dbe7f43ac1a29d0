"""`make data` against a server on this machine."""

import hashlib
import http.server
import importlib.util
import io
import os
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "data" / "download.py"
FILES = {"Set/train/a.txt": b"a" * 70_000, "Set/b.txt": os.urandom(90_000)}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("download", PATH)
    sys.modules["download"] = module = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["download"]


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path. The first `cuts` answers end after half of what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.ranges, self.asked = {}, 0, True, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.server.ranges else 0
        self.server.asked.append((self.path, start))
        whole = self.server.content.get(self.path[1:])
        if whole is None:
            return self.send_error(404)
        rest = whole[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def tar(files=FILES, mode="w", **link):
    """A tar archive; `link` is a TarInfo's fields for one more member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
        if link:
            about = tarfile.TarInfo()
            vars(about).update(link) if not hasattr(about, "__slots__") else [setattr(about, *f) for f in link.items()]
            archive.addfile(about)
    return file.getvalue()


def zipped(files=FILES, link=""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            about = zipfile.ZipInfo("Set/link")
            about.external_attr = 0o120777 << 16
            archive.writestr(about, link)
    return file.getvalue()


@pytest.fixture
def offer(script, server, monkeypatch):
    """Make archives, by name, the data set "toy" in the folder "toys"."""

    def add(inner="", **contents):
        server.content = {name.replace("_", "."): content for name, content in contents.items()}
        archives = [
            script.Archive(server.url(name), len(content), hashlib.sha256(content).hexdigest())
            for name, content in server.content.items()
        ]
        monkeypatch.setitem(script.SOURCES, "toy", script.Source("toys", archives, inner))
        return archives

    return add


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(folder):
    """What is there but archives and locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != "archives")


@pytest.mark.parametrize(
    ("name", "content"), [("a_tar", tar()), ("a_tgz", tar(mode="w:gz")), ("a_zip", zipped())], ids=["tar", "tgz", "zip"]
)
def test_an_archive_becomes_a_folder_once(script, server, offer, tmp_path, name, content):
    offer(**{name: content})
    script.get("toy", tmp_path)
    assert read(tmp_path / "toys") == FILES and left(tmp_path) == ["toys"]
    server.content = {}
    script.get("toy", tmp_path)  # is there already
    assert len(server.asked) == 1 and read(tmp_path / "toys") == FILES


def test_several_archives_share_a_folder_and_the_inner_one_is_taken(script, offer, tmp_path):
    more = {"Set/train/c.txt": b"c", "Set/train/d.txt": b""}
    offer("Set", a_tar=tar(), b_zip=zipped(more))
    script.get("toy", tmp_path)
    assert read(tmp_path / "toys") == {name.removeprefix("Set/"): content for name, content in (FILES | more).items()}


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_cut_download_goes_on_where_it_was(script, server, offer, tmp_path, cuts):
    [archive] = offer(a_tar=tar())
    server.cuts = cuts
    script.get("toy", tmp_path)
    starts = [start for _, start in server.asked]
    assert len(starts) == cuts + 1 and starts[1] == archive.size // 2 and starts == sorted(starts)
    assert read(tmp_path / "toys") == FILES


def test_a_killed_run_goes_on_where_it_was(script, server, offer, tmp_path):
    [archive] = offer(a_tar=(content := tar()))
    for path, rest in ((tmp_path / "archives/a.tar.part", content[:1000]), (tmp_path / ".toys.part/Set/old", b"half")):
        path.parent.mkdir(parents=True)
        path.write_bytes(rest)
    script.get("toy", tmp_path)
    assert server.asked == [("/a.tar", 1000)] and read(tmp_path / "toys") == FILES and left(tmp_path) == ["toys"]


def test_a_server_without_ranges_sends_all_again(script, server, offer, tmp_path):
    offer(a_tar=(content := tar()))
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.tar.part").write_bytes(content[:1000])
    server.ranges = False
    script.get("toy", tmp_path)
    assert server.asked == [("/a.tar", 0)] and read(tmp_path / "toys") == FILES


def test_another_file_of_the_same_size_is_refused_and_deleted(script, server, offer, tmp_path):
    [archive] = offer(a_tar=(content := tar()))
    server.content["a.tar"] = content[:-1] + b"x"
    with pytest.raises(SystemExit, match=f"{archive.url} has SHA-256 .*, not {archive.sha256}"):
        script.get("toy", tmp_path)
    assert left(tmp_path) == [] and not [path for path in (tmp_path / "archives").iterdir() if "a.tar" in path.name]


def test_an_archive_put_by_hand_is_checked_and_used(script, server, offer, tmp_path):
    [archive] = offer(a_zip=(content := zipped()))
    server.content = {}
    (tmp_path / "archives").mkdir()
    (path := tmp_path / "archives/a.zip").write_bytes(content[:-1])
    with pytest.raises(SystemExit, match=f"{path} has SHA-256 .*, not {archive.sha256}"):
        script.get("toy", tmp_path)
    assert path.read_bytes() == content[:-1] and left(tmp_path) == []  # not ours to delete
    path.write_bytes(content)
    script.get("toy", tmp_path)
    assert not server.asked and read(tmp_path / "toys") == FILES


@pytest.mark.parametrize("missing", [True, False], ids=["no network", "no such file"])
def test_without_a_server_one_line_says_what_to_put_where(script, server, offer, tmp_path, missing):
    _, gone = offer(a_zip=(content := zipped()), b_tar=tar())
    server.content.pop("b.tar")
    if missing:
        server.shutdown()
        server.server_close()
        (tmp_path / "archives").mkdir()
        (tmp_path / "archives/a.zip").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        script.get("toy", tmp_path)
    message = str(stop.value)
    assert "\n" not in message and f"put {gone.url} into {tmp_path / 'archives'}" in message
    assert left(tmp_path) == []


LINK = {"type": tarfile.SYMTYPE, "name": "Set/link"}
EVIL = {
    "tar, upwards": ("a_tar", tar({"Set/a": b"a", "../evil": b"x"}), "evil"),
    "tar, further up": ("a_tar", tar({"Set/../../evil": b"x"}), "evil"),
    "tar, link up": ("a_tar", tar(**LINK, linkname="../../evil"), "link"),
    "tar, absolute link": ("a_tar", tar(**LINK, linkname="/etc"), "link"),
    "tar, hard link": ("a_tar", tar(**LINK | {"type": tarfile.LNKTYPE}, linkname="../evil"), "link"),
    "tar, device": ("a_tar", tar(**LINK | {"type": tarfile.CHRTYPE}), "link"),
    "zip, upwards": ("a_zip", zipped({"Set/a": b"a", "../evil": b"x"}), "evil"),
    "zip, absolute": ("a_zip", zipped({"/tmp/evil": b"x"}), "evil"),
    "zip, link": ("a_zip", zipped(link="/etc"), "link"),
}


@pytest.mark.parametrize(("name", "content", "culprit"), EVIL.values(), ids=EVIL)
def test_what_leads_out_of_the_folder_is_refused(script, offer, tmp_path, name, content, culprit):
    offer(**{name: content})
    with pytest.raises(SystemExit, match=culprit):
        script.get("toy", tmp_path / "datasets")
    assert left(tmp_path / "datasets") == [] and left(tmp_path) == ["datasets"]


def test_every_source_is_pinned(script):
    assert {*script.SOURCES} == {"voc2007", "coco2014", "coco2017", "imagenette"}
    for source in script.SOURCES.values():
        for archive in source.archives:
            assert len(archive.sha256) == 64 and int(archive.sha256, 16) and archive.size > 1e8
            assert archive.name.endswith((".tar", ".tgz", ".zip"))
