"""Guided steps in other people's loops: Lightning and accelerate."""

import accelerate
import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from e2lib import models
from e2lib.datasets import Scenes, collate
from e2lib.guidance import Guide


@pytest.fixture
def start():
    torch.manual_seed(0)
    return models.build("test_resnet", 10)


def batches():
    return DataLoader(Scenes("train", 8, 64, objects=1), 4, collate_fn=collate)


def by_hand(net):
    """The weights after two guided steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        sum(Guide()(net, batch).values()).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_lightning_trains_through_explanations(start, tmp_path):
    class Guided(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, number):
            return sum(Guide()(self.net, batch).values())

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    guided = Guided(models.build("test_resnet", 10))
    guided.net.load_state_dict(start.state_dict())
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(guided, batches())
    found = torch.cat([p.detach().flatten() for p in guided.net.parameters()])
    torch.testing.assert_close(found, by_hand(start))


def test_accelerate_trains_through_explanations(start):
    accelerator, net = accelerate.Accelerator(cpu=True), models.build("test_resnet", 10)
    net.load_state_dict(start.state_dict())
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    for batch in batches():
        optimizer.zero_grad()
        accelerator.backward(sum(Guide()(net, batch).values()))
        optimizer.step()
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in net.parameters()]), by_hand(start))
