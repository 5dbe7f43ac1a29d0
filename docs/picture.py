"""Take the README's pictures out of executed notebooks: `python docs/picture.py` writes docs/*.jpg."""

import base64
from pathlib import Path

import nbformat

from e2lib.disk import replacing

HERE = Path(__file__).parent
PICTURES = {"03_bcos_networks": "picture.jpg", "12_playground": "playground.jpg"}  # notebook -> file


def picture(path: Path) -> bytes:
    """The JPEG picture of a notebook's cell tagged `readme`. ValueError where no cell has both."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "readme" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/jpeg" in output.get("data", {}):
                    return base64.b64decode(output.data["image/jpeg"])
    raise ValueError(f"{path} has no cell tagged 'readme' with a picture; run `make notebooks`")


def main() -> None:
    """Write every picture."""
    for notebook, name in PICTURES.items():
        with replacing(HERE / name) as part:
            part.write_bytes(picture(HERE.parent / "notebooks" / f"{notebook}.ipynb"))


if __name__ == "__main__":
    main()
