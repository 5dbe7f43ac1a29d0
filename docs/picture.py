"""Take the README's picture out of the executed notebook 03: `python docs/picture.py` writes docs/picture.jpg."""

import base64
import os
from pathlib import Path

import nbformat

HERE = Path(__file__).parent


def main() -> None:
    """Write the picture of the cell tagged `readme`. ValueError where no cell of the notebook has both."""
    path = HERE.parent / "notebooks" / "03_bcos_networks.ipynb"
    for cell in nbformat.read(path, as_version=4).cells:
        if "readme" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/jpeg" in output.get("data", {}):
                    part = HERE / ".picture.jpg"
                    part.write_bytes(base64.b64decode(output.data["image/jpeg"]))
                    os.replace(part, HERE / "picture.jpg")
                    return
    raise ValueError(f"{path} has no cell tagged 'readme' with a picture; run `make notebooks`")


if __name__ == "__main__":
    main()
