"""What guidance and distillation cost, as `make bench` writes it into docs/costs.md.

Run it on a machine that does nothing else: these are wall times.
"""

import argparse
import platform

import torch

from tests.bench import distillation, guidance, hours, page

# network, limits of the ratios to the plain step, limits of the chosen form's speed, pixels, batch
STEPS = [
    ("resnet50", {"Final": 1.10, "Input": 2.0}, {"plain": 1.7, "Final": 1.7, "Input": 1.7}, 224, 8),
    ("bcos_resnet18", {"Input": 1.5}, {"plain": 1.4, "Input": 1.4}, 224, 8),
    ("efficientnet_lite0", {}, {"Input": 1.35}, 128, 16),
    ("efficientnet_lite0", {"Final": 1.10}, {}, 224, 8),
]


def main() -> None:
    """Measure everything, print the tables and write them into docs/costs.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=guidance.ROUNDS, help="of each measurement")
    parser.add_argument("--images", type=int, nargs="*", default=[5000, 50_000], help="counts for the memory")
    given = parser.parse_args()
    counts, guidance.ROUNDS = given.images, given.rounds
    page.place("make bench")  # before all is measured
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows, speeds = [], guidance.features("efficientnet_lite0", 2.2)
    for name, ratios, at_least, size, batch in STEPS:
        both = guidance.steps(name, ratios, at_least, size, batch)
        rows, speeds = rows + both[0], speeds + both[1]
    rows += guidance.few_boxes("resnet50", 1.05)
    both = guidance.evaluation("resnet50", 4, 1.7)
    rows, speeds = rows + both[0], speeds + both[1] + guidance.kept_memory("efficientnet_lite0", 2.0)
    for count in counts:
        rows += guidance.memory("mobilenetv3_small_050", 1.5, count)
    rows += distillation.steps("resnet34", "resnet18", "gradcam", "Final", {1: 1.10, 16: 1.08})
    rows += distillation.steps("bcos_resnet34", "bcos_resnet18", "weights", "Input", {1: 2.0, 16: 1.08})
    rows += distillation.frozen("resnet34", "resnet18", 0.75)
    text = page.table(("what", "measured", "aimed at: at most"), rows)
    text += "\n\nThe form that `training.form` chooses, against float32 with contiguous weights:\n\n"
    text += page.table(("what", "measured", "aimed at: at least"), speeds)
    text += "\n\nWhere the time of a step goes, per image:\n\n"
    text += page.table(
        ("step", "convolutions and their derivatives", "all else"), guidance.shares("bcos_resnet18", "Input")
    )
    machine = f"{platform.machine()}, 2 threads, torch {torch.__version__.partition('+')[0]}"
    text += f"\n\nMedians on {machine}. Plain and distilling steps update norm statistics, guided ones do not."
    page.write("make bench", text)
    hours.main()


if __name__ == "__main__":
    main()
