"""The examples in the documents run as they stand."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text(encoding="utf-8")
SHARED, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{n}" for n in range(1, len(EXAMPLES) + 1)])
def test_an_example_of_ten_lines_runs(example, tmp_path, monkeypatch):
    assert len(example.splitlines()) <= 10
    for package in ("lightning", "accelerate"):
        if f"import {package}" in example or f"from {package}" in example:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    exec(compile(SHARED + example, "docs/own.md", "exec"), namespace)
    gradients = [p.grad for p in namespace["net"].parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
