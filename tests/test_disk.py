"""Files that are there whole or not at all; what is computed once, by one of several."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from filelock import Timeout
from torchvision import tv_tensors

from e2lib import disk


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    disk.write(path, "ä")
    with pytest.raises(KeyboardInterrupt), disk.replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "ä" and list(tmp_path.iterdir()) == [path]


def test_a_digest_depends_on_values_alone():
    assert disk.digest({"a": 1, "b": [2.5, None]}) == disk.digest({"b": [2.5, None], "a": 1})
    assert disk.digest({"a": 1}) != disk.digest({"a": 2}) and len(disk.digest(0, 5)) == 5


def test_of_several_one_makes_a_file_and_the_others_wait(tmp_path):
    made = []

    def make(part):
        made.append(time.sleep(0.3))
        part.write_text("whole")

    with ThreadPoolExecutor(4) as several:
        found = list(several.map(lambda _: disk.once(tmp_path / "new" / "a.txt", make).read_text(), range(4)))
    assert found == ["whole"] * 4 and len(made) == 1
    with pytest.raises(OSError, match="disk full"):  # what fails leaves nothing, and is made anew
        disk.once(tmp_path / "b.txt", lambda part: (_ for _ in ()).throw(OSError("disk full")))
    assert disk.once(tmp_path / "b.txt", make).read_text() == "whole"


def test_without_waiting_a_file_is_left_to_whoever_makes_it(tmp_path):
    begun, go = threading.Event(), threading.Event()

    def slowly(part):
        begun.set()
        go.wait(10)
        part.write_text("first")

    path = tmp_path / "a.txt"
    with ThreadPoolExecutor(1) as other:
        first = other.submit(disk.once, path, slowly)
        begun.wait(10)
        assert not disk.once(path, lambda part: part.write_text("second"), wait=False).exists()
        go.set()
        first.result()
    assert disk.once(path, lambda part: part.write_text("third"), wait=False).read_text() == "first"


def test_a_timeout_while_a_file_is_made_is_not_hidden(tmp_path):
    def make(part):
        raise Timeout(str(part))

    with pytest.raises(Timeout):
        disk.once(tmp_path / "a.txt", make)


def test_arrays_and_tensors_count_by_type_shape_and_bytes():
    values = np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 3), np.int64), np.eye(2, 3), torch.zeros(2, 3), "0"
    digests = [disk.digest([value]) for value in values]
    assert len(set(digests)) == 6 and disk.digest([torch.zeros(2, 3).double()]) == digests[0]
    large = np.zeros(10_000)
    first = disk.digest({"a": large})
    large[5000] = 1  # which NumPy's text leaves out
    assert disk.digest({"a": large}) != first
    assert disk.digest([tv_tensors.Image(torch.ones(3, 2, 2))]) == disk.digest([torch.ones(3, 2, 2)])
