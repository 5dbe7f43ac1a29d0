"""Waterbirds: birds pasted onto land and water."""

from fnmatch import fnmatchcase
from pathlib import Path

import torch

from e2lib.boxes import check_boxes
from e2lib.datasets.files import FileDataset, Folder, Item, check_unique, need, read_lines, read_rows
from e2lib.datasets.sample import Transform, check_value

SPLITS = {"train": "0", "val": "1", "test": "2"}
TASKS = {"bird": ["landbird", "waterbird"], "place": ["land", "water"]}
GROUPS = ["landbird on land", "landbird on water", "waterbird on land", "waterbird on water"]
COLUMNS = {"img_id": [], "img_filename": [], "y": ["0", "1"], "split": ["0", "1", "2"], "place": ["0", "1"]}


class Waterbirds(FileDataset):
    """Waterbirds (Sagawa et al., ICLR 2020): CUB birds on Places backgrounds, bird and place correlated in training.

    Input: photographs. Label: landbird or waterbird, or by `task` "place" land or water. Both have the bird's box.
    Groups: bird x place. Waterbirds-95: 4795, 1199, 5794 images, 5 % of the training birds on the other place;
    Waterbirds-100: the same birds, none on the other place. Source: github.com/kohpangwei/group_DRO, boxes from
    CUB-200-2011 (vision.caltech.edu); for research. `variant` names the waterbird_* folder where root has several.
    """

    layout = "waterbird_*/metadata.csv with its images, and CUB_200_2011/bounding_boxes.txt"
    groups = GROUPS

    def __init__(
        self, root: Folder, split: str, task: str = "bird", variant: str = "waterbird_*", transform: Transform = None
    ):
        check_value(split in SPLITS, "split", split, f"one of {list(SPLITS)}")
        check_value(task in TASKS, "task", task, f"one of {list(TASKS)}")
        root = need(Path(root), self.layout)
        found = sorted(p for p in root.glob("*") if fnmatchcase(p.name, variant) and p.is_dir())
        folder, *others = found or [need(root / variant, self.layout)]
        if others:
            raise ValueError(f"{root} has {', '.join(p.name for p in [folder, *others])}; choose one with variant=")
        listing = need(root / "CUB_200_2011" / "bounding_boxes.txt", self.layout)
        table, items, box_of = need(folder / "metadata.csv", self.layout), [], {}
        for line in read_lines(listing):
            try:
                name, *numbers = line.split()
                x, y, w, h = map(float, numbers)
            except ValueError:
                raise ValueError(f"{listing}: need lines of img_id x y width height, found {line!r}") from None
            check_boxes(torch.tensor([[x, y, x + w, y + h]]), (0, 0), f"{listing}: image {name}")
            check_value(name not in box_of, f"{listing}: image", name, "there once")
            box_of[name] = [x, y, x + w, y + h]
        rows = read_rows(table, COLUMNS)
        check_unique([row["img_id"] for row in rows], f"{table}: img_id")
        for row in rows:
            if row["split"] == SPLITS[split]:
                if row["img_id"] not in box_of:
                    raise ValueError(f"{listing} has no box of image {row['img_id']}")
                label = [int(row["y" if task == "bird" else "place"])]
                group = 2 * int(row["y"]) + int(row["place"])
                items.append(Item(row["img_filename"], label, [box_of[row["img_id"]]], label, group=group))
        super().__init__(folder, items, TASKS[task], transform)
