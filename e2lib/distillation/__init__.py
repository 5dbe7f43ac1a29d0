"""Distillation: a student learns what a teacher says, what it computes on the way, or why it says it.

e²KD: Parchami-Araghi et al.: Good Teachers Explain: Explanation-Enhanced Knowledge Distillation, ECCV 2024.
"""

from e2lib.distillation.distill import TERMS, Distill, Term, class_maps, explanation, top_class
from e2lib.distillation.losses import at, bce, cat_kd, crd, cross_entropy, dist, dkd, e2kd, fitnet, kd, multi_label_kd

__all__ = ["TERMS", "Distill", "Term", "at", "bce", "cat_kd", "class_maps", "crd", "cross_entropy", "dist", "dkd"]
__all__ += ["e2kd", "explanation", "fitnet", "kd", "multi_label_kd", "top_class"]
