"""Spoilt data sets: whatever is wrong with the files, the right values come out, or an error that names the culprit.

Each kind below spoils a small, valid data set on disk. hypothesis draws where, by how much, and whether a second kind
comes on top. A kind returns what an error must name, or None where the data set must be read as if nothing were wrong;
it may change what is expected.
"""

import io
import itertools
import json
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from torchvision.transforms import v2

from e2lib.datasets import COCO, VOC, ImageFolder, Waterbirds, collate, eval_transform

W, H = 14, 10
EXAMPLES = 8  # of each kind, most of them with a second one on top
QUICK = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
QUICK = settings(QUICK, phases=[Phase.generate], suppress_health_check=[*HealthCheck])  # shrinking takes minutes


class Inapplicable(Exception):
    """The kind before has taken away what this one would spoil."""


def png(image, suffix="PNG", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


class World:
    """A data set of three images: files by path (None: a folder), what must be read from them, what is wrong so far."""

    def __init__(self, draw):
        self.draw, self.files, self.links, self.options, self.faults = draw, {}, {}, {}, {}
        self.expected, self.pictures, self.culprits, self.root = {}, {}, [], ""
        random = Random(draw(st.integers(0, 999)))
        for i, name in enumerate(self.names):
            colour = tuple(random.randrange(256) for _ in range(3))
            x, y = random.randrange(6), random.randrange(5)
            box = [x, y, x + random.randint(3, 7), y + random.randint(3, 5)]
            path = f"{self.folder}/{name}{self.suffix}"
            self.expected[name] = {"colour": colour, "classes": {self.classes[i % 2]}, "boxes": [box]}
            self.pictures[name], self.files[path] = path, png(Image.new("RGB", (W, H), colour))
        self.build()

    def one_of(self, values):
        return self.draw(st.sampled_from([*values]))

    def edit(self, path, pattern, new, count=1):
        """Replace one match of a regular expression, drawn at random, in a text file."""
        try:
            text = self.files[path].decode()
        except (KeyError, AttributeError, UnicodeError):
            raise Inapplicable from None
        if not (found := [*re.finditer(pattern, text)]):
            raise Inapplicable
        match = self.one_of(found)
        self.files[path] = (text[: match.start()] + match.expand(new) + text[match.end() :]).encode()

    def write(self, root):
        for path, content in self.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).mkdir(exist_ok=True) if content is None else (root / path).write_bytes(content)
        for path, goal in self.links.items():
            if (root / path).exists():
                continue
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(root / goal, root / path)


class FolderWorld(World):
    names, folder, suffix, classes = ["a/1", "b/1", "a/2"], "train", ".png", ["a", "b"]

    def build(self):
        for one in self.expected.values():
            one["boxes"] = []

    def load(self, root):
        return ImageFolder(root, **{"split": "train"} | self.options)


class VOCWorld(World):
    names, folder, suffix, classes = ["x", "y 1", "z"], "JPEGImages", ".jpg", ["cat", "dog"]

    def build(self):
        for name, one in self.expected.items():
            x1, y1, x2, y2 = one["boxes"][0]
            corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            item = f"<object><name>{[*one['classes']][0]}</name><bndbox>{corners}</bndbox></object>"
            size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
            self.files[f"Annotations/{name}.xml"] = f"<annotation>{size}{item}</annotation>".encode()
        self.files |= {"ImageSets/Main/train.txt": b"x\ny 1\nz\n", "classes.txt": b"cat\ndog\n"}

    def load(self, root):
        return VOC(root, **{"split": "train"} | self.options)

    def xml(self):
        return f"Annotations/{self.one_of(self.names)}.xml"


class COCOWorld(World):
    names, folder, suffix, classes = ["x", "y", "z"], "train2014", ".jpg", ["cat", "dog"]
    path = "annotations/instances_train2014.json"

    def build(self):
        images, annotations = [], []
        for i, (name, one) in enumerate(self.expected.items()):
            x1, y1, x2, y2 = one["boxes"][0]
            images.append({"id": i + 5, "file_name": f"{name}.jpg", "height": H, "width": W})
            about = {"id": i + 1, "image_id": i + 5, "category_id": 3 + self.classes.index([*one["classes"]][0])}
            about |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            annotations.append(about | {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]})
        categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        self.files[self.path] = json.dumps(content).encode()

    def load(self, root):
        return COCO(root, **{"split": "train"} | self.options)

    def change(self, section, do):
        """Change one entry of a section of the JSON file by a function of it."""
        try:
            content = json.loads(self.files[self.path], object_pairs_hook=once)
            do(self.one_of(content[section]) if section else content)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError):
            raise Inapplicable from None
        self.files[self.path] = json.dumps(content).encode()
        return self.path


class BirdWorld(World):
    names, folder, suffix, classes = ["a/1", "b/2", "a/3"], "waterbird_1", ".jpg", ["landbird", "waterbird"]
    table, listing = "waterbird_1/metadata.csv", "CUB_200_2011/bounding_boxes.txt"

    def build(self):
        rows, boxes = ["img_id,img_filename,y,split,place,place_filename"], []
        for i, (name, one) in enumerate(self.expected.items(), 1):
            x1, y1, x2, y2 = one["boxes"][0]
            rows.append(f"{i},{name}.jpg,{self.classes.index([*one['classes']][0])},0,{i % 2},p{i}.jpg")
            boxes.append(f"{i} {x1}.0 {y1}.0 {x2 - x1}.0 {y2 - y1}.0")
        self.files[self.table] = "".join(f"{row}\n" for row in rows).encode()
        self.files[self.listing] = "".join(f"{line}\n" for line in boxes).encode()

    def load(self, root):
        return Waterbirds(root, **{"split": "train"} | self.options)


def once(pairs):
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("two keys")
    return dict(pairs)


WORLDS = [FolderWorld, VOCWorld, COCOWorld, BirdWorld]
KINDS = {}  # name: (the data sets it can befall, function of a World)


def kind(name, *worlds):
    def add(function):
        assert name not in KINDS
        KINDS[name] = (worlds or WORLDS, function)

    return add


def edits(world, path, right, **table):
    """Kinds that replace a match of a pattern in a text file.

    `right` says whether it is read as before; a text is what the error names instead of the file.
    """
    for name, (pattern, new) in table.items():

        def function(w, pattern=pattern, new=new):
            found = path(w)
            w.edit(found, pattern, new)
            return right if isinstance(right, str) else None if right else found

        kind(f"{world.__name__}: {name.replace('_', ' ')}", world)(function)


# ---- pictures: every mode that a file can have, orientation, damage


def repaint(w, content, colour=...):
    """Another content for one picture, of which `colour` is expected; ... is the one that it has."""
    name = w.one_of(w.names)
    path = w.pictures[name]
    w.faults.pop(path, None)
    if callable(content):
        content = content(w.expected[name]["colour"])
    w.files[path], w.expected[name]["colour"] = content, w.expected[name]["colour"] if colour is ... else colour
    return path


@kind("grey picture")
def _(w):
    grey = w.draw(st.integers(0, 255))
    repaint(w, png(Image.new("L", (W, H), grey)), (grey,) * 3)


@kind("black and white picture")
def _(w):
    repaint(w, png(Image.new("1", (W, H), 1)), (255,) * 3)


@kind("picture of 16-bit grey")
def _(w):
    value, big = w.draw(st.integers(0, 65535)), w.draw(st.booleans())
    picture = Image.fromarray(np.full((H, W), value, ">u2" if big else "<u2"))
    repaint(w, png(picture, "TIFF" if big else w.one_of(["PNG", "TIFF"])), (value >> 8,) * 3)


@kind("picture of 32-bit integers")
def _(w):
    return refused(w, png(Image.new("I", (W, H), w.draw(st.integers(0, 2**31 - 1))), "TIFF"))


@kind("picture of floats")
def _(w):
    return refused(w, png(Image.new("F", (W, H), w.draw(st.floats(0, 255, width=32))), "TIFF"))


def refused(w, content):
    path = repaint(w, content)
    w.faults[path] = path
    return path


for mode, suffixes in {
    "P": ["PNG"],
    "CMYK": ["JPEG", "TIFF"],
    "YCbCr": ["TIFF"],
    "RGB": ["BMP", "PPM", "TIFF", "WEBP"],
}.items():

    @kind(f"picture of mode {mode}")
    def _(w, mode=mode, suffixes=suffixes):
        suffix = w.one_of(suffixes)
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(suffix, {})
        options = {} if mode == "P" else options

        def content(colour):
            picture = Image.new("RGB", (W, H), colour)
            picture = picture.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else picture.convert(mode)
            return png(picture, suffix, **options)

        repaint(w, content)


for mode, suffixes in {"RGBA": ["PNG", "WEBP", "TIFF"], "LA": ["PNG"]}.items():

    @kind(f"picture of mode {mode}, transparent in part")
    def _(w, mode=mode, suffixes=suffixes):
        grey, alpha, suffix = w.draw(st.integers(0, 255)), w.draw(st.integers(1, 255)), w.one_of(suffixes)
        colour = (grey, alpha) if mode == "LA" else (grey, grey, grey, alpha)
        repaint(w, png(Image.new(mode, (W, H), colour), suffix, lossless=True), (grey,) * 3)


@kind("picture whose EXIF says that it is to be turned")
def _(w):
    exif = Image.Exif()
    exif[0x0112] = w.draw(st.integers(0, 12))
    suffix = w.one_of(["JPEG", "PNG", "WEBP"])
    options = {"quality": 100} | ({"lossless": True} if suffix == "WEBP" else {})
    repaint(w, lambda colour: png(Image.new("RGB", (W, H), colour), suffix, exif=exif, **options))


@kind("picture of several frames")
def _(w):
    def content(colour):
        first, second = Image.new("RGB", (W, H), colour), Image.new("RGB", (W, H), (1, 2, 3))
        return png(first, w.one_of(["TIFF", "PNG"]), save_all=True, append_images=[second])

    repaint(w, content)


@kind("picture cut off")
def _(w):
    noise = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    whole = png(Image.fromarray(noise), w.one_of(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]))
    return refused(w, whole[: w.draw(st.integers(1, len(whole) // 2))])


@kind("picture of no bytes, or of text")
def _(w):
    return refused(
        w, w.one_of([b"", b"\n", b"<html>404</html>", b"version https://git-lfs", b"\0" * 99, b"GIF89a", b"P6\n"])
    )


@kind("picture with a byte changed")
def _(w):
    """What it decodes to is not known, but nothing else than an error that names it may follow."""
    name = w.one_of(w.names)
    content = bytearray(
        png(Image.new("RGB", (W, H), (9, 99, 199)), w.one_of(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"]))
    )
    content[w.draw(st.integers(0, len(content) - 1))] ^= 1 << w.draw(st.integers(0, 7))
    path = w.pictures[name]
    w.files[path], w.expected[name]["colour"], w.faults[path] = bytes(content), None, (path, "perhaps")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@kind("picture that claims to be enormous")
def _(w):
    side = w.draw(st.integers(20000, 2**31 - 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, 20000, 8, 2, 0, 0, 0))
    return refused(w, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))


@kind("picture with a text of a megabyte")
def _(w):
    info = PngImagePlugin.PngInfo()
    info.add_text("profile", "a" * (2 << 20), zip=True)
    return refused(w, png(Image.new("RGB", (W, H)), pnginfo=info))


@kind("picture with a wrong checksum")
def _(w):
    def content(colour):
        whole = png(Image.new("RGB", (W, H), colour))
        at = whole.index(b"IDAT") + 5
        return whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]

    return refused(w, content)


@kind("picture missing, or a folder, or a link to nothing")
def _(w):
    path = w.pictures[w.one_of(w.names)]
    if w.links:
        raise Inapplicable
    if isinstance(w, FolderWorld):  # a picture that is not there is none of its data
        path += "-.png"
        w.links[path] = "nowhere.png"
    else:
        w.files.pop(path, None)
        if w.draw(st.booleans()):
            w.links[path] = "nowhere.jpg"
        elif w.draw(st.booleans()):
            w.files[path] = None
            w.links.pop(path, None)
    w.faults[path] = path
    return path


# ---- arguments


@kind("root that is a file")
def _(w):
    w.root = "file"
    w.files["file"] = b""
    return "file"


@kind("no such folder")
def _(w):
    w.options["split"] = "nowhere"
    return "split" if isinstance(w, BirdWorld) else "nowhere"


@kind("split that no disk can hold")
def _(w):
    w.options["split"] = w.one_of(["a\0b", "x" * 5000, "é\udce9"])
    return "split" if isinstance(w, BirdWorld) else w.options["split"]


@kind("transform of torchvision's itself")
def _(w):
    w.options["transform"] = w.one_of([v2.Resize(4), v2.Compose([v2.RandomHorizontalFlip()])])
    return "transform"


@kind("classes as one text, or twice", FolderWorld, VOCWorld)
def _(w):
    w.options["classes"] = w.one_of(["ab cat dog", [*w.classes, w.classes[0]], [*w.classes, "x", "x"]])
    return "classes"


@kind("classes that lack one", FolderWorld, VOCWorld)
def _(w):
    if w.options:
        raise Inapplicable
    w.options["classes"] = [w.classes[0], "other"]
    return w.classes[1]


@kind("more classes, in another order", FolderWorld, VOCWorld)
def _(w):
    if w.options:
        raise Inapplicable
    w.options["classes"] = ["other", *w.classes[::-1]]


# ---- image folders


@kind("hidden files and folders", FolderWorld)
def _(w):
    for _ in range(w.draw(st.integers(1, 3))):
        name = w.one_of(
            [".ipynb_checkpoints/1-checkpoint.png", "._1.png", "__MACOSX/a/1.png", ".git/x.png", ".cache/q/1.png"]
        )
        w.files[f"{w.one_of(['', 'train/', 'train/a/'])}{name}"] = b"\0\5\x16\7"


@kind("files that are no pictures", FolderWorld)
def _(w):
    w.files |= {
        f"train/{w.one_of(['', 'a/'])}{name}": b"x" for name in ("Thumbs.db", "notes.txt", "desktop.ini", "list.csv")
    }


@kind("odd names", FolderWorld)
def _(w):
    old = w.one_of(w.names)
    odd = w.one_of(
        [
            "é",
            "日本",
            "it's",
            'a"b',
            "a b",
            "caf\udce9",
            "a\nb",
            "%20",
            "-rf",
            "~",
            "a.b",
            "1e5",
            "x" * 200,
            "\u2028",
            "{}",
        ]
    )
    new = f"{old[0]}/{odd}"
    if new in w.expected or w.pictures[old] not in w.files or w.links:
        raise Inapplicable
    path = f"train/{new}{w.one_of(['.png', '.PNG', '.JpEg', '.tif'])}"
    w.files[path] = w.files.pop(w.pictures[old])
    w.culprits = [path if culprit == w.pictures[old] else culprit for culprit in w.culprits]
    if fault := w.faults.pop(w.pictures[old], None):
        w.faults[path] = path if isinstance(fault, str) else (path, "perhaps")
    w.expected[new], w.pictures[new] = w.expected.pop(old), path
    w.names = [*w.expected]


@kind("link back", FolderWorld)
def _(w):
    path = f"train/{w.one_of(['', 'a/', 'b/'])}again"
    w.links[path] = w.one_of(["train", "", "train/" + path.split("/")[1]] if "/" in path[6:] else ["train", ""])
    return "again"


@kind("two links to each other's folder", FolderWorld)
def _(w):
    w.links |= {"train/a/x": "train/b", "train/b/y": "train/a"}
    return "link back"


@kind("picture in no class folder", FolderWorld)
def _(w):
    w.files["train/9.png"] = b""
    return "9.png"


@kind("empty class folder", FolderWorld)
def _(w):
    w.files["train/empty"] = None
    return "empty"


@kind("class of another split", FolderWorld)
def _(w):
    w.files[f"{w.one_of(['val', 'test'])}/zebra/1.png"] = b""
    w.more = ["zebra"]


@kind("split that is a file, or has no pictures", FolderWorld)
def _(w):
    w.options["split"] = "other"
    w.files |= w.one_of([{"other": b""}, {"other": None}, {"other/x": None}, {"other/x/y.txt": b""}])
    return "other"


# ---- lists


def lists(w):
    return w.one_of(["ImageSets/Main/train.txt", "classes.txt"])


LISTS = {"byte order mark": lambda b: b"\xef\xbb\xbf" + b, "Windows": lambda b: b.replace(b"\n", b"\r\n")}
LISTS |= {"no newline at the end": lambda b: b.rstrip(b"\n"), "old Macintosh": lambda b: b.replace(b"\n", b"\r")}
LISTS |= {
    "blank lines": lambda b: b"\n \n" + b.replace(b"\n", b"\n\n\t\n"),
    "spaces": lambda b: b.replace(b"\n", b" \n "),
}
for name, change in LISTS.items():

    @kind(f"list: {name}", VOCWorld, BirdWorld)
    def _(w, change=change):
        path = lists(w) if isinstance(w, VOCWorld) else w.listing
        if path not in w.files or w.files[path] is None:
            raise Inapplicable
        w.files[path] = change(w.files[path])


LISTS = {"UTF-16": lambda b: b.decode(errors="replace").encode("utf-16"), "Latin-1": lambda b: b + b"caf\xe9\n"}
LISTS |= {"NUL": lambda b: b.replace(b"\n", b"\0\n"), "twice the same": lambda b: b + b.split(b"\n")[0] + b"\n"}
LISTS |= {"a folder": lambda b: None, "not a line": lambda b: b""}
for name, change in LISTS.items():

    @kind(f"list refused: {name}", VOCWorld, BirdWorld)
    def _(w, change=change):
        path = w.one_of(["ImageSets/Main/train.txt", "classes.txt"]) if isinstance(w, VOCWorld) else w.listing
        if not w.files.get(path) or change(w.files[path]) == w.files[path]:
            raise Inapplicable
        w.files[path] = change(w.files[path])
        if isinstance(w, BirdWorld):
            return path
        return "unknown class" if path == "classes.txt" and w.files[path] == b"" else path


@kind("list of images that are not there", VOCWorld)
def _(w):
    line = w.one_of(["q", "x.jpg", "x 1", "x  -1", "q" * 5000, "../x", "{}", "/q"])
    w.edit("ImageSets/Main/train.txt", r"\Z", line)
    return line


# ---- VOC

edits(
    VOCWorld,
    VOCWorld.xml,
    True,
    byte_order_mark=("^", "\ufeff"),
    comment_and_doctype=("^", '<?xml version="1.0"?><!-- x --><!DOCTYPE annotation>'),
    spaces_around_values=(r">([a-z]+|\d+)<", r"> \1\n<"),
    size_missing=("<size>.*</size>", ""),
    size_of_zero=(r"(<width>|<height>)\d+", r"\g<1>0"),
    parts=("</bndbox>", "</bndbox><part><name>head</name><bndbox><xmin></xmin></bndbox></part>"),
    other_file_name=("</annotation>", "<filename>other.png</filename><path>C:\\\\x</path></annotation>"),
)
edits(
    VOCWorld,
    VOCWorld.xml,
    False,
    not_XML=("<annotation>", "<annotation"),
    cut_off=(r"<object>[\s\S]*", ""),
    empty_file=(r"[\s\S]+", ""),
    JSON=(r"[\s\S]+", '{"shapes": []}'),
    other_root=(r"^[\s\S]*$", "<svg></svg>"),
    namespace=("<annotation>", '<annotation xmlns="http://a.b">'),
    unknown_class=("<name>[a-z]+", "<name>unicorn"),
    class_missing=("<name>[a-z]+</name>", ""),
    class_empty=("<name>[a-z]+", "<name>"),
    box_missing=("<bndbox>.*</bndbox>", ""),
    polygon_for_box=(r"<bndbox>.*</bndbox>", "<polygon><x1>1</x1></polygon>"),
    side_missing=(r"<(xmin|ymin|xmax|ymax)>[\d.]+</\1>", ""),
    side_is_text=(r"(<xmin>|<ymin>|<xmax>|<ymax>)\d+", r"\1wide"),
    side_is_empty=(r"(<xmin>|<ymin>|<xmax>|<ymax>)\d+", r"\1"),
    side_is_NaN=(r"(<xmin>|<ymin>|<xmax>|<ymax>)\d+", r"\1nan"),
    side_is_infinite=(r"(<xmin>|<ymin>|<xmax>|<ymax>)\d+", r"\g<1>1e999"),
    box_inverted=(r"(<xmin>|<ymin>)\d+", r"\g<1>14"),
    box_far_outside=(r"(<xmin>|<ymin>)\d+", r"\g<1>-40"),
    decimal_comma=(r"(<xmin>|<ymin>|<xmax>|<ymax>)(\d+)", r"\1\2,5"),
    size_is_NaN=(r"(<width>|<height>)\d+", r"\1nan"),
    size_is_infinite=(r"(<width>|<height>)\d+", r"\1inf"),
    size_is_text=(r"(<width>|<height>)\d+", r"\1tall"),
    encoding_unknown=("^<anno", '<?xml version="1.0" encoding="nonsense"?><anno'),
    encoding_wrong=("^<anno", '<?xml version="1.0" encoding="utf-16"?><anno'),
    entities=("^<anno", '<!DOCTYPE annotation [<!ENTITY a SYSTEM "/etc/hostname">]><!-- -->&a;<anno'),
    control_character=("</annotation>", "\x01</annotation>"),
)


@kind("VOC: size of another picture", VOCWorld)
def _(w):
    name = w.one_of(w.names)
    new = w.one_of(
        [f"<width>{H}</width><height>{W}", f"<width>{W}.5</width><height>{H}", f"<width>{W}</width><height>{H + 1}"]
    )
    w.edit(f"Annotations/{name}.xml", r"<width>\d+</width><height>\d+", new)
    return f"{name}.jpg"


@kind("VOC: no annotations of an image", VOCWorld)
def _(w):
    path = w.xml()
    w.files[path] = None
    if w.draw(st.booleans()):
        del w.files[path]
    return path


@kind("VOC: encodings, each with a name in it", VOCWorld)
def _(w):
    name = w.one_of(w.names)
    path, old = f"Annotations/{name}.xml", [*w.expected[name]["classes"]][0]
    new, encoding = w.one_of(
        [("猫", "gb2312"), ("貓", "big5"), ("ネコ", "shift_jis"), ("Köter", "iso-8859-1"), ("кот", "koi8-r")]
    )
    text = w.files[path].decode(errors="ignore") if w.files.get(path) else ""
    if not text.startswith("<annotation>") or f">{old}<" not in text or b"hot" in (w.files["classes.txt"] or b""):
        raise Inapplicable
    w.files[path] = f'<?xml version="1.0" encoding="{encoding}"?>{text.replace(old, new)}'.encode(encoding)
    w.expected[name]["classes"] = {new}
    w.options["classes"] = [*w.options.get("classes", w.classes), new]


@kind("VOC: bytes that are not of the encoding", VOCWorld)
def _(w):
    path = w.xml()
    w.edit(path, "</annotation>", "<!-- caf@ --></annotation>")
    w.files[path] = w.files[path].replace(b"@", b"\xe9")
    return path


@kind("VOC: one class with a line separator in it", VOCWorld)
def _(w):
    for path in ["classes.txt", *(f"Annotations/{name}.xml" for name in w.names)]:
        if not w.files.get(path) or w.options:
            raise Inapplicable
        w.files[path] = w.files[path].replace(b"dog", "hot\u2028dog".encode())
    w.classes = ["cat", "hot\u2028dog"]
    for one in w.expected.values():
        one["classes"] = {c.replace("dog", "hot\u2028dog") for c in one["classes"]}


def segmented(w, objects, classes):
    """Segmentation of one image by arrays of indices (H, W); None leaves a file out. Returns its name."""
    name = w.one_of(w.names)
    if any(path.startswith("Seg") for path in w.files):
        raise Inapplicable
    for part, indices in (("Object", objects), ("Class", classes)):
        if indices is not None:
            w.files[f"Segmentation{part}/{name}.png"] = (
                indices if isinstance(indices, bytes) else png(Image.fromarray(indices))
            )
    return name


NOTHING = np.zeros((H, W), np.uint8)
SPOILT = {"of another size": (np.zeros((W, H), np.uint8), NOTHING), "without classes": (NOTHING, None)}
SPOILT |= {"in colour": (np.zeros((H, W, 3), np.uint8), NOTHING), "of 16 bits": (NOTHING.astype(np.uint16), NOTHING)}
SPOILT |= {"of no box": (NOTHING + 1, NOTHING + 77), "cut off": (png(Image.fromarray(NOTHING))[:30], NOTHING)}
SPOILT |= {"classes cut off": (NOTHING, png(Image.fromarray(NOTHING))[:40]), "no picture": (b"x", NOTHING)}
for name, arrays in SPOILT.items():

    @kind(f"VOC: segmentation {name}", VOCWorld)
    def _(w, arrays=arrays):
        return f"{segmented(w, *arrays)}.png"


@kind("VOC: empty segmentation", VOCWorld)
def _(w):
    segmented(w, NOTHING, NOTHING)


# ---- COCO

VALUES = {"missing": ..., "null": None, "a list": [1], "an object": {}, "true": True}
FIELDS = {"images": ["id", "file_name", "height", "width"], "categories": ["id", "name"]}
FIELDS |= {"annotations": ["id", "image_id", "category_id", "bbox"]}
for (name, value), section in itertools.product(VALUES.items(), FIELDS):

    @kind(f"COCO: field of {section} {name}", COCOWorld)
    def _(w, value=value, section=section):
        field = w.one_of(FIELDS[section])
        value = [] if field == "bbox" and value == [1] else value
        return w.change(section, lambda e: e.pop(field) if value is ... else e.update({field: value}))


def entry(name, section, function, right=False, named=None):
    """A kind that changes an entry of the JSON file; the error names the file, or what `named` says."""

    @kind(f"COCO: {name}", COCOWorld)
    def _(w):
        w.change(section, lambda e: function(e, w))
        return None if right else named or w.path


def bbox(function):
    def change(e, w):
        i = w.draw(st.integers(0, 3))
        e["bbox"] = function(e["bbox"], i)

    return change


def put(value):
    return bbox(lambda b, i: [*b[:i], value, *b[i + 1 :]])


for name, value in {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "text": "5",
    "null": None,
    "huge": 10**400,
    "nested": [1],
}.items():
    entry(f"bbox with a number that is {name}", "annotations", put(value))
entry("bbox of three numbers", "annotations", bbox(lambda b, i: b[:3]))
entry("bbox of five numbers", "annotations", bbox(lambda b, i: [*b, 0]))
entry("bbox of no size", "annotations", lambda e, w: e["bbox"].__setitem__(w.one_of([2, 3]), 0))
entry("bbox of negative size", "annotations", lambda e, w: e["bbox"].__setitem__(w.one_of([2, 3]), -3))
entry("bbox far outside", "annotations", lambda e, w: e["bbox"].__setitem__(w.one_of([0, 1]), w.one_of([-40, 40])))
entry("bbox of floats", "annotations", lambda e, w: e.update(bbox=[v + 0.0 for v in e["bbox"]]), True)
entry("iscrowd text", "annotations", lambda e, w: e.update(iscrowd=w.one_of(["0", "1", "false", None, 2, []])))
entry("iscrowd false", "annotations", lambda e, w: e.update(iscrowd=[False][e["iscrowd"]]), True)
entry("iscrowd missing", "annotations", lambda e, w: [None][e["iscrowd"]] or e.pop("iscrowd"), True)
entry("unknown image", "annotations", lambda e, w: e.update(image_id=w.one_of([99, "5", -1])))
entry("unknown class", "annotations", lambda e, w: e.update(category_id=w.one_of([99, "3", 0])))
entry("two annotations of one id", None, lambda c, w: c["annotations"].append(dict(c["annotations"][0])))
entry("two images of one id", None, lambda c, w: c["images"].append(c["images"][0] | {"file_name": "other.jpg"}))
entry("two images of one file", None, lambda c, w: c["images"].append(c["images"][0] | {"id": 77}), named="x.jpg")
entry("two classes of one id", None, lambda c, w: c["categories"].append({"id": 3, "name": "cow"}))
entry("two classes of one name", None, lambda c, w: c["categories"].append({"id": 8, "name": "cat"}))
entry("ids of two types", None, lambda c, w: w.one_of([*c.values()])[0].update(id="one"))
entry("other fields", "images", lambda e, w: e.update(license=None, coco_url=["x"], id2={}), True)
entry("unused class", None, lambda c, w: c["categories"].append({"id": 90, "name": "zebra"}), True)
entry("unknown size", "images", lambda e, w: e.update({w.one_of(["height", "width"]): w.one_of([0, 0.0])}), True)
entry("turned size", "images", lambda e, w: e.update(height=W, width=H), named=".jpg")
entry(
    "size of NaN or less than none",
    "images",
    lambda e, w: e.update({w.one_of(["height", "width"]): w.one_of([float("nan"), -W, 1e30, 10**400])}),
)
entry("section missing", None, lambda c, w: c.pop(w.one_of([*c])))
entry(
    "section null or an object", None, lambda c, w: c.update({w.one_of([*c]): w.one_of([None, {}, "x", 5, {"1": {}}])})
)
entry("entries of other types", None, lambda c, w: w.one_of([*c.values()]).append(w.one_of([None, 5, "id", []])))
entry("file name empty", "images", lambda e, w: e.update(file_name=""))
entry(
    "file name that no disk can hold",
    "images",
    lambda e, w: e.update(file_name=w.one_of(["a\0b.jpg", "q" * 5000, "\udce9\udce9"])),
    named="train2014",
)


def spoil(value):
    def change(e, w):
        if len(e["segmentation"][0]) != 8:
            raise KeyError("spoilt already")
        e["segmentation"] = value

    return change


SEGMENTATIONS = {"one point": [[1, 1]], "two points": [[1, 1, 5, 5]], "no points": [[]], "flat": [[1, 1, 5, 1, 9, 1]]}
SEGMENTATIONS |= {
    "not nested": [1, 1, 5, 1, 5, 5],
    "seven numbers": [[1, 1, 5, 1, 5, 5, 1]],
    "text": "polygon",
    "number": 5,
}
SEGMENTATIONS |= {
    "of texts": [["1", "1", "5", "1", "5", "5"]],
    "of pairs": [[[1, 1], [5, 1], [5, 5]]],
    "object": {"x": 1},
}
SEGMENTATIONS |= {
    "NaN": [[1, 1, float("nan"), 1, 5, 5]],
    "infinite": [[1, 1, float("inf"), 1, 5, 5]],
    "nulls": [[None] * 6],
}
SEGMENTATIONS |= {"far outside": [[1, 1, 5000, 1, 5, 5]], "huge": [[1, 1, 10**300, 1, 5, 5]], "null inside": [None]}
SEGMENTATIONS |= {
    "runs too few": {"size": [H, W], "counts": [9, 9]},
    "runs too many": {"size": [H, W], "counts": [100, 100]},
}
SEGMENTATIONS |= {
    "runs negative": {"size": [H, W], "counts": [150, -10]},
    "runs of NaN": {"size": [H, W], "counts": [float("nan")]},
}
SEGMENTATIONS |= {"runs of another size": {"size": [W, H], "counts": [H * W]}, "runs without size": {"counts": [H * W]}}
SEGMENTATIONS |= {
    "runs null": {"size": [H, W], "counts": None},
    "runs of nonsense": {"size": [H, W], "counts": "nonsense \x7f~é"},
}
SEGMENTATIONS |= {"runs cut off": {"size": [H, W], "counts": "T4"}, "runs of nothing": {"size": [H, W], "counts": ""}}
for name, value in SEGMENTATIONS.items():
    entry(f"segmentation {name}", "annotations", spoil(value))
for name, value in {"null": None, "empty": [], "runs": {"size": [H, W], "counts": [11, 5, H * W - 16]}}.items():
    entry(f"segmentation right: {name}", "annotations", spoil(value), True)


@kind("COCO: segmentation of compressed runs", COCOWorld)
def _(w):
    mask = w.draw(st.integers(0, 2**32)).to_bytes(5, "big") * H * W
    runs = pycocotools.mask.encode(np.asfortranarray(np.frombuffer(mask, np.uint8)[: H * W].reshape(H, W) % 2))
    value = {"size": [H, W], "counts": runs["counts"].decode()}
    w.change("annotations", lambda e: spoil(value)(e, w))


JSONS = {
    "cut off": lambda b: b[: len(b) // 2],
    "empty": lambda b: b"",
    "a list": lambda b: b"[" + b + b"]",
    "a number": lambda b: b"5",
}
JSONS |= {
    "null": lambda b: b"null",
    "nested deeply": lambda b: b"[" * 100000,
    "Latin-1": lambda b: b.replace(b"cat", b"caf\xe9"),
}
JSONS |= {"a key twice": lambda b: b.replace(b'"images":', b'"images": [], "images":'), "a folder": lambda b: None}
JSONS |= {
    "a trailing comma": lambda b: b[:-1] + b",}",
    "two documents": lambda b: b + b,
    "a section twice": lambda b: b[:-1] + b', "images": []}',
}
for name, change in JSONS.items():

    @kind(f"COCO: JSON {name}", COCOWorld)
    def _(w, change=change):
        w.change(None, lambda content: None)  # it must be JSON so far
        before = w.files[w.path]
        w.files[w.path] = change(before)
        if w.files[w.path] == before:
            raise Inapplicable
        return w.path


for encoding in ("utf-8-sig", "utf-16", "utf-32"):

    @kind(f"COCO: JSON in {encoding}", COCOWorld)
    def _(w, encoding=encoding):
        try:
            json.loads(text := w.files[w.path].decode())
            w.files[w.path] = text.encode(encoding)
        except (ValueError, AttributeError, RecursionError):
            raise Inapplicable from None


# ---- Waterbirds

edits(
    BirdWorld,
    lambda w: w.table,
    True,
    byte_order_mark=("^", "\ufeff"),
    blank_lines=("\n", "\n\n"),
    quotes=(r"([ab]/\d\.jpg)", r'"\1"'),
    columns_more=(r"^img_id([^\n]*)\n(.*)\n(.*)\n(.*)\n", r"img_id\1,more\n\2,\n\3,x\n\4,é\n"),
)
edits(
    BirdWorld,
    lambda w: w.table,
    False,
    column_lacking=("(img_id|img_filename|,y|split|place),", "other,"),
    column_twice=(",place_filename", ",place"),
    semicolons=("^[^\\n]*", "img_id;img_filename;y;split;place"),
    header_missing=(r"^img_id.*\n", ""),
    empty_file=(r"^[\s\S]*$", ""),
    label_unknown=(r"\.jpg,[01],0,", ".jpg,2,0,"),
    label_empty=(r"\.jpg,[01],0,", ".jpg,,0,"),
    label_of_spaces=(r"\.jpg,([01]),0,", r".jpg, \1,0,"),
    split_unknown=(r"\.jpg,([01]),0,", r".jpg,\1,train,"),
    place_unknown=(r",0,[01],p", ",0,-1,p"),
    row_short=(r"(\d,[ab]/\d\.jpg,[01],0).*", r"\1"),
    row_of_one=(r"(\d),[ab]/\d\.jpg.*", r"\1"),
    row_long=(r"(\d,[ab]/\d\.jpg.*)", r"\1,x"),
    name_with_a_comma=(r"([ab]/)(\d\.jpg)", r"\1x,\2"),
    quote_open=(r"([ab]/\d\.jpg)", r'"\1'),
    file_empty=(r"[ab]/\d\.jpg", ""),
    two_rows_of_one_id=(r"\n3,", r"\n1,"),
    NUL=(r"[ab]/\d\.jpg", "a/\\0.jpg"),
)
edits(VOCWorld, VOCWorld.xml, ".jpg: box", side_is_huge=(r"(<xmax>|<ymax>)\d+", r"\g<1>1e30"))
edits(BirdWorld, lambda w: w.table, "a/1.jpg", two_rows_of_one_file=(r"a/3\.jpg", "a/1.jpg"))
edits(BirdWorld, lambda w: w.table, "no box of image 77", id_of_no_box=(r"\n(\d),", r"\n77,"))
edits(BirdWorld, lambda w: w.table, "waterbird_1: the split is empty", rows_none=(r"\n[\s\S]*", r"\n"))
edits(
    BirdWorld,
    lambda w: w.listing,
    False,
    box_short=(r"(\d \d\.0).*", r"\1"),
    box_long=(r"(\d \d\.0.*)", r"\1 1.0"),
    box_of_texts=(r"(\d) (\d\.0)", r"\1 wide"),
    box_of_NaN=(r"(\d) \d\.0", r"\1 nan"),
    box_of_infinity=(r"(\d) \d\.0", r"\1 1e999"),
    box_with_commas=(r"(\d) (\d\.0) ", r"\1,\2,"),
    box_negative=(r"\d\.0\n", "-3.0\n"),
    box_of_no_size=(r"\d\.0\n", "0.0\n"),
    box_twice=(r"\n([23]) ", "\n1 "),
    box_missing=(r"[123] .*\n", ""),
)
edits(
    BirdWorld, lambda w: w.listing, True, more_boxes=(r"\n", "\n99 1.0 1.0 5.0 5.0\n"), tabs=(r"(\d) (\d)", r"\1\t \2")
)


@kind("BirdWorld: metadata in another encoding", BirdWorld)
def _(w):
    new = w.one_of(["utf-16", "latin-1"])
    w.edit(w.table, r"p(\d)\.jpg", r"é\1.jpg")
    w.files[w.table] = w.files[w.table].decode().encode(new, "replace")
    return w.table


@kind("BirdWorld: a file is a folder, or missing", BirdWorld)
def _(w):
    path = w.one_of([w.table, w.listing])
    w.files[path] = None
    if w.draw(st.booleans()):
        del w.files[path]
    return path


@kind("BirdWorld: two variants", BirdWorld)
def _(w):
    w.files["waterbird_2/metadata.csv"] = b""
    return "variant"


@kind("BirdWorld: variant that cannot be", BirdWorld)
def _(w):
    w.options["variant"] = w.one_of(["", "/", "nowhere", "a\0", "q" * 5000, "waterbird_1/metadata.csv", "**"])
    return {"**": "variant", "nowhere": "nowhere", "q" * 5000: "qqq", "a\0": "a\0"}.get(
        w.options["variant"], "metadata.csv"
    )


@kind("BirdWorld: unknown task", BirdWorld)
def _(w):
    w.options["task"] = w.one_of(["birds", "", None])
    return "task"


# ---- the property


def told(w, samples, data):
    """Raises AssertionError where the Samples are not what is expected."""
    assert [s.name for s in samples] == sorted(w.expected) if isinstance(w, FolderWorld) else [*w.expected]
    classes = {data.classes[c] for s in samples for c in s.labels.nonzero()[:, 0]}
    assert classes == {c for one in w.expected.values() for c in one["classes"]}
    for s in samples:
        one = w.expected[s.name]
        assert s.image.shape == (3, H, W) and s.image.dtype == torch.uint8
        if one["colour"]:
            assert (s.image.float().mean((1, 2)) - torch.tensor(one["colour"])).abs().max() < 5
        assert {data.classes[c] for c in s.labels.nonzero()[:, 0]} == one["classes"]
        assert s.boxes.tolist() == one["boxes"]
        assert len(s.box_labels) == len(s.boxes) and (s.masks is None or len(s.masks) == len(s.boxes))


def attempt(w, root):
    """Read everything; whether it was refused, in words that name a culprit."""
    must = [culprit for culprit in w.culprits if culprit]
    if "classes" in w.options:  # then the file of classes is not read
        must = [culprit for culprit in must if culprit not in ("classes.txt", "unknown class")]
    perhaps = [*w.same, *(fault[0] for fault in w.faults.values() if isinstance(fault, tuple))]
    try:
        data = w.load(root / w.root)
        samples = list(data)
        assert data.targets.shape == (len(samples), len(data.classes)) and data.fingerprint()
        batch = collate([eval_transform(8)(s) for s in samples])
    except (ValueError, FileNotFoundError) as error:
        assert any(name in str(error) for name in [*must, *perhaps]), f"names none of {must, perhaps}: {error!r}"
        assert not isinstance(error, UnicodeError), repr(error)
        return
    assert batch.images.isfinite().all()
    if not w.same:  # the second kind may have undone the first
        assert not must, f"{must} went unnoticed"
        told(w, samples, data)


@pytest.fixture
def work():
    """A folder in memory where the system has one: thousands of small files are written."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.filterwarnings("ignore")
def test_spoilt_data_sets_are_read_rightly_or_refused_by_name(work):
    tried, numbers = {}, itertools.count()

    def check(name):
        @QUICK
        @given(st.data())
        def spoil(data):
            draw = data.draw
            worlds, function = KINDS[name]
            w = draw(st.sampled_from(worlds))(draw)
            whole = dict(w.files)
            w.culprits, w.same = [function(w)], []
            tried[name] = tried.get(name, 0) + 1
            others = [other for other, (able, _) in KINDS.items() if type(w) in able]
            second = draw(st.sampled_from([None, *others]))
            if second:
                state = dict(w.files)
                try:
                    w.culprits.append(KINDS[second][1](w))
                except Inapplicable:
                    w.files = state
                # Two kinds in one file may undo each other; those in the JSON file take care not to.
                paths = [path for path in {*whole, *state, *w.files} if path != COCOWorld.path]
                w.same = [path for path in paths if whole.get(path, 0) != state.get(path, 0) != w.files.get(path, 0)]
            root = work / str(next(numbers))
            w.write(root)
            try:
                attempt(w, root)
            except Exception as error:
                error.add_note(f"kinds {name!r}, {second!r}; {w.files.get(COCOWorld.path, b'')[:1500]}")
                raise

        spoil()

    for name in KINDS:
        check(name)
    print(f"{len(tried)} kinds of bad input, {sum(tried.values())} data sets")
    assert {*tried} == {*KINDS} and len(tried) >= 70
