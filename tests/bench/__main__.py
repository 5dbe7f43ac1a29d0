"""What guidance and distillation cost, as `make bench` writes it into README.md.

Run it on a machine that does nothing else: these are wall times.
"""

import argparse
import platform

import torch

from tests.bench import distillation, guidance, hours, readme


def main() -> None:
    """Measure everything, print the tables and write them into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[5000, 50_000], help="counts for the memory")
    counts = parser.parse_args().images
    readme.place("make bench")  # before all is measured
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = guidance.steps("resnet50", {"Final": 1.10, "Input": 2.2})
    rows += guidance.steps("efficientnet_lite0", {"Final": 1.10})
    rows += guidance.steps("bcos_resnet18", {"Input": 1.5})
    rows += guidance.few_boxes("resnet50", 1.10)
    rows += guidance.evaluation("resnet50", 4)
    for count in counts:
        rows += guidance.memory("mobilenetv3_small_050", 1.5, count)
    rows += distillation.steps("resnet34", "resnet18", "gradcam", "Final", {1: 1.10, 16: 1.08})
    rows += distillation.steps("bcos_resnet34", "bcos_resnet18", "weights", "Input", {1: 2.0, 16: 1.08})
    rows += distillation.frozen("resnet34", "resnet18", 0.75)
    machine = f"{platform.machine()}, 2 threads, torch {torch.__version__.partition('+')[0]}, float32, 224 pixels"
    text = readme.table(("what", "measured", "aimed at: at most"), rows)
    text += f"\n\nMedians on {machine}. Plain and distilling steps update norm statistics, guided ones do not."
    readme.write("make bench", text)
    hours.main()


if __name__ == "__main__":
    main()
