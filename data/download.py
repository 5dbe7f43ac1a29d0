"""Download a data set of the papers into datasets/, where the presets look for it.

    make data NAME=voc2007

Archives go into datasets/archives; they may be deleted afterwards. An interrupted download goes on where it was. An
archive that somebody has put there is checked and used. A data set that is there already is left alone.
"""

import argparse
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

FOLDER = Path(__file__).parents[1] / "datasets"
CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds


@dataclass
class Archive:
    """A file of the publisher's."""

    url: str
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass
class Source:
    """Archives that make one data set."""

    folder: str  # under datasets/
    archives: list[Archive]
    inner: str = ""  # the folder in the archives that becomes it


# Sizes and SHA-256 are those of github.com/tensorflow/datasets, tensorflow_datasets/url_checksums: voc.txt (of a
# mirror), coco.txt and imagenette.txt. github.com/pytorch/vision has the same SHA-256 of VOC and COCO for the official
# addresses: torchvision/prototype/datasets/_builtin, voc.py and coco.py.
VOC, COCO = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/", "http://images.cocodataset.org/"
SOURCES = {
    "voc2007": Source(
        "voc2007",
        [
            Archive(
                VOC + "VOCtrainval_06-Nov-2007.tar",
                460032000,
                "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
            ),
            Archive(
                VOC + "VOCtest_06-Nov-2007.tar",
                451020800,
                "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
            ),
        ],
    ),
    "coco2014": Source(
        "coco",
        [
            Archive(
                COCO + "annotations/annotations_trainval2014.zip",
                252872794,
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            ),
            Archive(
                COCO + "zips/train2014.zip",
                13510573713,
                "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
            Archive(
                COCO + "zips/val2014.zip",
                6645013297,
                "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            ),
        ],
    ),
    "coco2017": Source(
        "coco2017",
        [
            Archive(
                COCO + "annotations/annotations_trainval2017.zip",
                252907541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            Archive(
                COCO + "zips/train2017.zip",
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            Archive(
                COCO + "zips/val2017.zip",
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
        ],
    ),
    "imagenette": Source(  # the shorter side has 320 pixels, enough for networks of 224
        "imagenette",
        [
            Archive(
                "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
                341553947,
                "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
            )
        ],
        inner="imagenette2-320",
    ),
}


def get(name: str, folder: Path = FOLDER) -> None:
    """Download, check and unpack a data set of SOURCES. SystemExit says in one line what is wrong, and what to do."""
    source, archives = SOURCES[name], folder / "archives"
    target, work = folder / source.folder, folder / f".{source.folder}.part"
    archives.mkdir(parents=True, exist_ok=True)
    with FileLock(archives / f".{name}.lock"):
        if target.exists():
            print(f"{target} is there already. Delete it to have it made anew.")
            return
        try:
            for archive in source.archives:
                fetch(archive, archives)
        except ConnectionError as error:
            missing = [archive.url for archive in source.archives if not (archives / archive.name).exists()]
            text = f"{error}. Without a network, put {' and '.join(missing)} into {archives}, and run this again."
            raise SystemExit(text) from error
        shutil.rmtree(work, ignore_errors=True)  # a killed run leaves it behind
        try:
            for archive in source.archives:
                unpack(archives / archive.name, work)
            os.replace(work / source.inner, target)
        except (ValueError, tarfile.FilterError) as error:
            raise SystemExit(f"{error}. Nothing was kept of it.") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{target} is ready. You may delete {archives}.")


def fetch(archive: Archive, folder: Path) -> None:
    """Have the archive in `folder`, with the right SHA-256. Raises ConnectionError where no byte comes."""
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.exists():
        if (found := sha256(path)) != archive.sha256:
            raise SystemExit(f"{path} has SHA-256 {found}, not {archive.sha256}. Delete it: it is not {archive.url}.")
        return
    while (have := part.stat().st_size if part.exists() else 0) < archive.size:
        headers, reason = {"Range": f"bytes={have}-", "User-Agent": "e2lib"}, "no byte came"
        request = urllib.request.Request(archive.url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                goes_on = answer.status == http.client.PARTIAL_CONTENT  # else the server sends all of it again
                with (
                    open(part, "ab" if goes_on else "wb") as file,
                    progress(archive.name, archive.size, have * goes_on) as bar,
                ):
                    while chunk := answer.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        if not part.exists() or part.stat().st_size <= have:
            raise ConnectionError(f"{archive.url} cannot be downloaded: {reason}")
    if (found := sha256(part)) != archive.sha256:
        part.unlink()
        raise SystemExit(f"{archive.url} has SHA-256 {found}, not {archive.sha256}. It was deleted.")
    os.replace(part, path)


def sha256(path: Path) -> str:
    """Of a file, in hex digits."""
    result = hashlib.sha256()
    with open(path, "rb") as file, progress(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            result.update(chunk)
            bar.update(len(chunk))
    return result.hexdigest()


def progress(what: str, size: int, begun: int = 0) -> tqdm:
    """A bar that counts bytes."""
    return tqdm(desc=what, total=size, initial=begun, unit="B", unit_scale=True, unit_divisor=1024)


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar or zip archive. Raises FilterError or ValueError for what would lie, or lead, outside `folder`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for member in tqdm(archive.infolist(), desc=f"unpacking {path.name}", unit="file"):
                inside = (folder / member.filename).resolve().is_relative_to(folder.resolve())
                if not inside or stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"{path}: {member.filename!r} is a link, or lies outside the archive's folder")
                archive.extract(member, folder)
    else:
        with tarfile.open(path) as archive:
            for member in tqdm(archive, desc=f"unpacking {path.name}", unit="file"):
                archive.extract(member, folder, filter="data")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES)
    get(parser.parse_args().name)
