"""papermill by itself: it reads presets and writes to object storage, and needs nothing of ours for that."""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import nbformat
import pytest
from moto.server import ThreadedMotoServer
from nbformat.v4 import new_code_cell, new_notebook

CELLS = (
    "# Parameters: a\nseed = 0\nimages = 1",
    "from e2lib.course import parameters\nprint(parameters.read(globals()))",
)


@pytest.fixture
def storage(monkeypatch):
    """A server that speaks S3, with a bucket `runs`; its client."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("BOTO3_ENDPOINT_URL", f"http://127.0.0.1:{port}")  # papermill's name for it
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="runs")
    yield client
    server.stop()


def test_papermill_takes_a_preset_and_writes_to_s3(storage, tmp_path):
    first, second = (new_code_cell(source) for source in CELLS)
    first.metadata["tags"] = ["parameters"]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[first, second], metadata=about), tmp_path / "04_a.ipynb")
    (tmp_path / "04.yaml").write_text("images: 7")
    command = [sys.executable, "-m", "papermill", "04_a.ipynb", "s3://runs/deep/04-3.ipynb"]
    command += ["-f", "04.yaml", "-p", "seed", "3"]
    there = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    executed = storage.get_object(Bucket="runs", Key="deep/04-3.ipynb")["Body"].read().decode()
    notebook = nbformat.reads(executed, as_version=4)
    assert notebook.cells[-1].outputs[0].text == "namespace(seed=3, images=7)\n"
