"""Waterbirds: birds pasted onto land and water."""

import csv
from collections.abc import Callable
from pathlib import Path

from e2lib.datasets.files import FileDataset, check_files, need
from e2lib.datasets.sample import Sample

SPLITS = {"train": 0, "val": 1, "test": 2}
TASKS = {"bird": ["landbird", "waterbird"], "place": ["land", "water"]}
GROUPS = ["landbird on land", "landbird on water", "waterbird on land", "waterbird on water"]
COLUMNS = {"img_id": None, "img_filename": None, "y": 2, "split": 3, "place": 2}  # how many values a column may take


class Waterbirds(FileDataset):
    """Waterbirds (Sagawa et al., ICLR 2020): CUB birds on Places backgrounds, bird and place correlated in training.

    Input: photographs of birds cut out and pasted onto land or water. Label: landbird or waterbird, or the place.
    Groups: bird x place. Waterbirds-95: 4795, 1199, 5794 images, 5 % of the training birds on the other place;
    Waterbirds-100: the same birds, none on the other place. Source: github.com/kohpangwei/group_DRO, boxes from
    CUB-200-2011 (vision.caltech.edu); for research.

    Args:
        root: folder with waterbird_*/metadata.csv and its images, and CUB_200_2011/bounding_boxes.txt.
        split: train, val or test.
        task: "bird" or "place", what is to be classified. The boxes are the bird's in both, and carry the label:
            guidance for the place looks outside.
        variant: name of the waterbird_* folder where root has several.
        transform: Sample -> Sample.

    Raises FileNotFoundError naming what is missing, ValueError naming the file, row and column that is wrong.
    """

    layout = "waterbird_*/metadata.csv with its images, and CUB_200_2011/bounding_boxes.txt"

    def __init__(
        self,
        root: str | Path,
        split: str,
        task: str = "bird",
        variant: str | None = None,
        transform: Callable[[Sample], Sample] | None = None,
    ):
        for name, value, known in (("split", split, SPLITS), ("task", task, TASKS)):
            if value not in known:
                raise ValueError(f"{name} is {value}; known: {', '.join(known)}")
        root = Path(root)
        folders = sorted(p.name for p in need(root, self.layout).glob(variant or "waterbird_*") if p.is_dir())
        if len(folders) > 1:
            raise ValueError(f"{root} has {', '.join(folders)}; choose one with variant=")
        folder = need(root / (folders[0] if folders else variant or "waterbird_*"), self.layout)
        box_of = _read_boxes(need(root / "CUB_200_2011" / "bounding_boxes.txt", self.layout))
        files, labels, boxes, group_of = [], [], [], []
        for row in _read_metadata(need(folder / "metadata.csv", self.layout)):
            if row["split"] != SPLITS[split]:
                continue
            if row["img_id"] not in box_of:
                raise ValueError(f"{root}/CUB_200_2011/bounding_boxes.txt has no box of image {row['img_id']}")
            files.append(row["img_filename"])
            labels.append([row["y" if task == "bird" else "place"]])
            boxes.append([box_of[row["img_id"]]])
            group_of.append(2 * row["y"] + row["place"])
        check_files(folder, files)
        super().__init__(folder, files, TASKS[task], labels, boxes, labels, GROUPS, group_of, transform=transform)


def _read_metadata(path: Path) -> list[dict]:
    """Rows of metadata.csv, numbers as int. Raises ValueError naming a missing column, or a row's wrong value."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    for column in COLUMNS:
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path} lacks the column {column}; it has {', '.join(reader.fieldnames or ())}")
    for number, row in enumerate(rows, 2):
        for column, count in COLUMNS.items():
            if count is None:
                continue
            if row[column] not in map(str, range(count)):
                raise ValueError(f"{path} line {number}: {column} is {row[column]}; it must be 0 to {count - 1}")
            row[column] = int(row[column])
    return rows


def _read_boxes(path: Path) -> dict[str, list[float]]:
    """Lines "img_id x y width height" -> xyxy by id. Raises ValueError naming the line that is not so."""
    boxes = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            name, x, y, w, h = line.split()
            x, y, w, h = map(float, (x, y, w, h))
        except ValueError:
            raise ValueError(f"{path} line {number}: need img_id x y width height, found {line!r}") from None
        boxes[name] = [x, y, x + w, y + h]
    return boxes
