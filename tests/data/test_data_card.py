"""The lists, the prepared photographs and their card must agree."""

import csv
import importlib.util
from pathlib import Path

import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
LICENCES = {"GPL-2.0-or-later", "CC-BY-4.0"}  # what goes together under GPL-3.0-or-later
COLUMNS = {
    "cutouts": "name category bird_habitat split package version path sha256 author licence",
    "backgrounds": "name group waterbirds_place package version path crop sha256 author licence",
}


def rows(kind):
    with open(DATA / f"{kind}.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def file_of(kind, row):
    return f"{kind}/{row['category' if kind == 'cutouts' else 'group']}/{row['name']}.webp"


@pytest.mark.parametrize("kind", COLUMNS)
def test_list_is_complete(kind):
    listed = rows(kind)
    assert list(listed[0]) == COLUMNS[kind].split()
    assert len({row["name"] for row in listed}) == len(listed)
    for row in listed:
        assert all(row[column] for column in ("name", "package", "version", "path", "author")), row
        assert row["licence"] in LICENCES, row
        assert len(row["sha256"]) == 64 and int(row["sha256"], 16) >= 0, row


def test_cutouts_have_a_category_and_a_split():
    listed = rows("cutouts")
    for category in {row["category"] for row in listed}:
        unseen = [row["split"] == "unseen" for row in listed if row["category"] == category]
        assert 0.15 <= sum(unseen) / len(unseen) <= 0.34, category
    for row in listed:
        assert row["split"] in ("seen", "unseen") and row["bird_habitat"] in ("", "land", "water"), row
        assert not row["bird_habitat"] or row["category"] == "bird", row


@pytest.mark.parametrize("kind", COLUMNS)
def test_files_are_the_listed_ones(kind):
    found = {str(path.relative_to(DATA)) for path in (DATA / kind).rglob("*") if path.is_file()}
    assert found == {file_of(kind, row) for row in rows(kind)}


def test_sizes():
    for row in rows("cutouts"):
        with Image.open(DATA / file_of("cutouts", row)) as image:
            alpha = image.convert("RGBA").getchannel("A")
        assert max(alpha.size) <= 192, row
        assert alpha.getextrema() == (0, 255), row  # neither opaque nor empty
        x1, y1, x2, y2 = alpha.getbbox()
        assert (x2 - x1, y2 - y1) == alpha.size, row  # cropped to what is visible
    for row in rows("backgrounds"):
        with Image.open(DATA / file_of("backgrounds", row)) as image:
            assert 300 < min(image.size) <= 448 and image.mode == "RGB", row
        if row["crop"]:
            x1, y1, x2, y2 = map(float, row["crop"].split())
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, row
    total = sum(path.stat().st_size for kind in COLUMNS for path in (DATA / kind).rglob("*") if path.is_file())
    assert total <= 15e6


def test_card_lists_every_file():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    table = [line for line in card.split("<!-- files -->")[1].split("<!-- end of files -->")[0].splitlines() if line]
    expected = [
        f"| {file_of(kind, row)} | {row['package']} | {row['author']} | {row['licence']} |"
        for kind in COLUMNS
        for row in rows(kind)
    ]
    assert table[2:] == expected
    assert "SPDX: GPL-3.0-or-later" in card
    for text in (*LICENCES, f"{len(rows('cutouts'))} photographs", f"{len(rows('backgrounds'))} photographs"):
        assert text in card


def load_build():
    spec = importlib.util.spec_from_file_location("build", DATA / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_prepares_pictures():
    build = load_build()
    image = Image.new("RGBA", (500, 400))
    image.paste((200, 10, 10, 255), (50, 100, 450, 300))
    cutout = build.prepare_cutout(image, trim=False)
    assert cutout.size == (192, 96) and cutout.getpixel((96, 48)) == (200, 10, 10, 255)
    assert build.prepare_cutout(image.crop((40, 90, 60, 110)), trim=True).size == (9, 9)  # 10 x 10, less its rim
    assert build.prepare_background(Image.new("RGB", (1000, 2000)), "0.5 0 1 1").size == (448, 1792)
    assert build.prepare_background(Image.new("RGB", (1000, 300)), "").size == (1000, 300)  # never enlarged


def test_build_refuses_by_name(tmp_path, monkeypatch):
    build = load_build()
    row = {"name": "hen", "package": "stamps", "version": "1", "path": "hen.png", "sha256": "0" * 64}
    with pytest.raises(FileNotFoundError, match="hen: package stamps holds no hen.png"):
        build.source(row, tmp_path)
    (tmp_path / "stamps").mkdir()
    (tmp_path / "stamps" / "hen.png").write_bytes(b"changed")
    with pytest.raises(ValueError, match="hen: hen.png of package stamps has SHA-256 .*, the list says 000"):
        build.source(row, tmp_path)
    monkeypatch.setattr("sys.argv", ["build.py"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get and dpkg not found: .* prepared files are committed"):
        build.main()
