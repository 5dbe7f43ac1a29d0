"""Folders of images, one a class: ImageNet, SUN397, your own."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from e2lib.datasets.files import FileDataset, need
from e2lib.datasets.sample import Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class ImageFolder(FileDataset):
    """Images sorted into class folders; no boxes, no groups.

    A class is a folder with images, named by its path: n01440764 (ImageNet), b/balcony/exterior (SUN397). Files
    with other suffixes than images' are not data.

    Args:
        root: root/<split>/<class>/*.jpg, or root/<class>/*.jpg with split None.
        split: folder under root.
        classes: class names in order; None: the class folders of all splits together (the folders beside `split`),
            sorted, so that a class has one index in every split.
        transform: Sample -> Sample.

    Raises FileNotFoundError naming a missing folder; ValueError naming an unknown class, a class folder without
    images, or an image outside a class folder.
    """

    layout = "<split>/<class>/*.jpg, or <class>/*.jpg with split=None"

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[[Sample], Sample] | None = None,
    ):
        folder = need(Path(root) / (split or ""), self.layout)
        stray, found = _list(folder)
        if stray:
            raise ValueError(f"{folder / stray[0]} is in no class folder; expected {folder}/<class>/{stray[0]}")
        if empty := [name for name in found if not found[name]]:
            raise ValueError(f"class folder {folder / empty[0]} has no images")
        if classes is None:
            others = [p for p in folder.parent.iterdir() if p.is_dir() and p != folder] if split else []
            named = [name for p in others for name, images in _list(p)[1].items() if images]
            classes = sorted({*found, *named})
        if unknown := sorted(set(found) - set(classes)):
            raise ValueError(f"{folder / unknown[0]}: unknown class {unknown[0]}; known: {', '.join(classes)}")
        files = [f"{name}/{image}" for name in sorted(found) for image in found[name]]
        labels = [label for name in sorted(found) for label in [[classes.index(name)]] * len(found[name])]
        super().__init__(folder, files, classes, labels, transform=transform)


def _list(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Images directly in `folder`, and those of each class folder below it: of each that has images or no folders."""
    found = {}
    for path, below, names in tqdm(os.walk(folder, followlinks=True), desc=f"listing {folder.name}", delay=5):
        images = sorted(n for n in names if n.lower().endswith(SUFFIXES))
        if images or not below:
            found[Path(path).relative_to(folder).as_posix()] = images
    return found.pop(".", []), found
