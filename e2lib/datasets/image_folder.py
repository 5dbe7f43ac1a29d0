"""Folders of images, one per class: ImageNet, SUN397, your own."""

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from e2lib.datasets.files import FileDataset, Item, Transform, need

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class ImageFolder(FileDataset):
    """Images sorted into class folders; no boxes, no groups.

    A class is a folder with images, named by its path: n01440764 (ImageNet), b/balcony/exterior (SUN397). Files with
    other suffixes are not data, nor is anything hidden or in __MACOSX. By default `classes`, the names in order, are
    the class folders of all splits (the folders beside `split`), sorted, so that a class has one index in every split.
    Raises FileNotFoundError naming a missing folder, ValueError naming an unknown class, a class folder without
    images, or an image outside a class folder.
    """

    layout = "<split>/<class>/*.jpg, or <class>/*.jpg without a split"
    test_split = "val"  # the labels of ImageNet's test images are not public
    boxed = False

    def __init__(
        self, root: str | Path, split: str = "", classes: Sequence[str] | None = None, transform: Transform = None
    ):
        folder = need(Path(root) / (split or ""), self.layout)
        found = _list(folder)
        if stray := found.pop(".", None):
            raise ValueError(f"{folder / stray[0]} is in no class folder; expected {folder}/<class>/{stray[0]}")
        if empty := [name for name in found if not found[name]]:
            raise ValueError(f"class folder {folder / empty[0]} has no images")
        if classes is None:
            others = [_list(p) for p in folder.parent.iterdir() if p.is_dir() and p != folder] if split else []
            named = {name for other in others for name, images in other.items() if images}
            classes = sorted((named | {*found}) - {"."})
        if unknown := sorted({*found} - {*classes}):
            raise ValueError(f"{folder / unknown[0]}: unknown class {unknown[0]}; known: {', '.join(classes)}")
        number = {name: [c] for c, name in enumerate(classes)}
        items = [Item(f"{name}/{image}", number[name]) for name in sorted(found) for image in found[name]]
        super().__init__(folder, items, classes, transform)


def _list(folder: Path) -> dict[str, list[str]]:
    """Images of each folder below `folder` that has images or no folders; "." is `folder` itself."""
    found = {}
    for path, below, names in tqdm(os.walk(folder, followlinks=True), desc=f"listing {folder.name}", delay=5):
        below[:] = [name for name in below if name[0] != "." and name != "__MACOSX"]
        images = sorted(name for name in names if name[0] != "." and name.lower().endswith(SUFFIXES))
        if images or not below:
            found[Path(path).relative_to(folder).as_posix()] = images
    return found
