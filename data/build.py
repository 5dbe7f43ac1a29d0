"""Rebuild the prepared photographs in data/cutouts and data/backgrounds from the Debian packages they come from.

    python data/build.py

Needs `apt-get` and `dpkg` (Debian 12 or a system that uses its archive), no root. The prepared files are committed,
so only a change of the lists data/cutouts.csv and data/backgrounds.csv asks for it.
"""

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageFilter
from tqdm.auto import tqdm

DATA = Path(__file__).parent
CUTOUT_LONGEST = 192  # pixels
BACKGROUND_SHORTEST = 448  # pixels
VISIBLE = 16  # alpha (of 255) from which a cut-out's pixel counts when its border is cropped away


def read_list(name: str) -> list[dict[str, str]]:
    """Rows of one of the two lists."""
    with open(DATA / name, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def unpack(package: str, folder: Path) -> None:
    """Download a Debian package and unpack it into `folder`. Raises RuntimeError when either fails."""
    for command in (["apt-get", "download", package], ["dpkg", "-x", "", str(folder / package)]):
        if command[0] == "dpkg":
            command[2] = str(next(folder.glob(f"{package}_*.deb")))
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()}")


def source(row: dict[str, str], folder: Path) -> Image.Image:
    """The source picture of a row. Raises FileNotFoundError, or ValueError when its SHA-256 is another."""
    path = folder / row["package"] / row["path"]
    if not path.is_file():
        raise FileNotFoundError(f"{row['name']}: package {row['package']} holds no {row['path']}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != row["sha256"]:
        raise ValueError(
            f"{row['name']}: {row['path']} of package {row['package']} has SHA-256 {found}, the list says "
            f"{row['sha256']} (taken from version {row['version']})"
        )
    return Image.open(path)


def prepare_cutout(image: Image.Image, trim: bool) -> Image.Image:
    """Crop to what is visible and shrink to a longest side of CUTOUT_LONGEST pixels: RGBA.

    With `trim` the outermost pixel goes first: the flowers were cut out with a pale rim, by which they could be told.
    """
    image = image.convert("RGBA")
    if trim:
        image.putalpha(image.getchannel("A").filter(ImageFilter.MinFilter(3)))
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a >= VISIBLE)).getbbox())
    scale = min(1, CUTOUT_LONGEST / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    return image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")  # premultiplied: no dark rims


def prepare_background(image: Image.Image, crop: str) -> Image.Image:
    """Cut out `crop` ("x1 y1 x2 y2" as fractions, "" for all) and shrink to a shortest side of BACKGROUND_SHORTEST."""
    image = image.convert("RGB")
    if crop:
        x1, y1, x2, y2 = (float(v) for v in crop.split())
        w, h = image.size
        image = image.crop((round(x1 * w), round(y1 * h), round(x2 * w), round(y2 * h)))
    scale = min(1, BACKGROUND_SHORTEST / min(image.size))
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)


def write(image: Image.Image, path: Path, quality: int) -> None:
    """Save as lossy WebP under a temporary name, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    image.save(part, "WEBP", quality=quality, alpha_quality=100, method=6)
    os.replace(part, path)


def write_card(rows: list[dict[str, str]], files: list[Path]) -> None:
    """Put the table of files into data/README.md, between the two marks."""
    card = DATA / "README.md"
    before, rest = card.read_text(encoding="utf-8").split("<!-- files -->\n")
    after = rest.split("<!-- end of files -->\n")[1]
    table = ["| file | package | author | licence |", "|---|---|---|---|"]
    for row, file in zip(rows, files, strict=True):
        table.append(f"| {file.relative_to(DATA)} | {row['package']} | {row['author']} | {row['licence']} |")
    part = card.with_suffix(".part")
    part.write_text("\n".join([f"{before}<!-- files -->", *table, f"<!-- end of files -->\n{after}"]), encoding="utf-8")
    os.replace(part, card)


def main() -> None:
    """Fetch, check, prepare, remove prepared files that the lists no longer name, and write the card's table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if missing := [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]:
        sys.exit(
            f"{' and '.join(missing)} not found: this script needs Debian. To USE the data you need not run it: the "
            "prepared files are committed under data/cutouts and data/backgrounds."
        )
    cutouts, backgrounds = read_list("cutouts.csv"), read_list("backgrounds.csv")
    written = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for package in tqdm(sorted({row["package"] for row in cutouts + backgrounds}), "download"):
            unpack(package, folder)
        for row in tqdm(cutouts, "cut-outs"):
            written.append(path := DATA / "cutouts" / row["category"] / f"{row['name']}.webp")
            write(prepare_cutout(source(row, folder), trim=row["category"] == "flower"), path, quality=92)
        for row in tqdm(backgrounds, "backgrounds"):
            written.append(path := DATA / "backgrounds" / row["group"] / f"{row['name']}.webp")
            write(prepare_background(source(row, folder), row["crop"]), path, quality=90)
    for old in {*DATA.glob("cutouts/*/*"), *DATA.glob("backgrounds/*/*")} - set(written):
        old.unlink()
    write_card(cutouts + backgrounds, written)
    total = sum(path.stat().st_size for path in written)
    print(f"{len(cutouts)} cut-outs, {len(backgrounds)} backgrounds, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
