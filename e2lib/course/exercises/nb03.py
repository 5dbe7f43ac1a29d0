"""Exercises of notebook 03."""

import math

import torch

from e2lib.course.exercises import Hint, choose, compare, exercise, random_maps


@exercise(
    "03.1",
    "One B-cos unit",
    "Compute by hand, three minutes",
    text="""
    A B-cos unit with B = 2 has the weight vector w = (0, 2). What is its output for the input x = (3, 4)?
    """,
    setup="from e2lib.course import exercises",
    start="output = ...",
    solution="output = (4 / 5) * 4",
    answer="output",
    why="""
    ŵ = (0, 1), so ŵᵀx = 4, and the cosine is 4 over the length of x, 5: an input that looks only roughly like the
    weights is turned down.
    """,
    mistakes=(
        ("(4 / 5) * 4", "4", "linear"),
        ("(4 / 5) * 4", "(4 / 5) * 8", "length"),
        ("(4 / 5) * 4", "(4 / 5) ** 2 * 4", "B − 1"),
        ("(4 / 5) * 4", "4 / 5", "cosine alone"),
    ),
)
def one_unit(output):
    compare(
        "output",
        output,
        3.2,
        (4.0, "that is the linear part, ŵᵀx: where is |cos|?"),
        (8.0, "that is wᵀx: w is divided by its length, and |cos| is missing."),
        (6.4, "w has to be divided by its length."),
        (2.56, "the exponent of |cos| is B − 1."),
        (0.8, "that is the cosine alone."),
    )


@exercise(
    "03.2",
    "The linear map that a unit is",
    "Write a function, ten minutes",
    text="""
    Write `dynamic(x, w)`: the dynamic weights W(x) (B, N) of one B-cos unit (B = 2) with weights w (N,), for inputs
    x (B, N), none of them zero, such that (W(x) · x) summed over N is its output.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def dynamic(x, w):
        unit = w / w.norm()
        ...


    """,
    solution="""
    def dynamic(x, w):
        unit = w / w.norm()
        cosine = (x @ unit) / x.norm(dim=1)
        return cosine.abs()[:, None] * unit


    """,
    answer="dynamic",
    why="""
    |cos| is one number for a given x, and W(x) is that number times ŵ: it points where the weights point. The
    gradient of the unit does not, since it also follows how |cos| changes with x. (For one unit with B = 2 both add
    up to the output. They are different maps all the same.)
    """,
    mistakes=(
        (".abs()", "", "sign"),
        ("cosine.abs()[:, None] * unit", "cosine.abs()[:, None] * w", "ŵ"),
        ("cosine.abs()[:, None] * unit", "unit.expand(len(x), -1)", "add up"),
        ("cosine.abs()[:, None] * unit", "cosine.abs()[:, None] * unit * x", "contributes"),
        (
            "return cosine.abs()[:, None] * unit",
            "return cosine.abs()[:, None] * (2 * unit - (x @ unit)[:, None] * x / x.norm(dim=1, keepdim=True) ** 2)",
            "gradient",
        ),
    ),
)
def linear_map(dynamic):
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(6, 5, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64) * 3,
    )
    unit = w / w.norm()
    cosine = (x @ unit) / x.norm(dim=1)
    output = cosine.abs() * (x @ unit)
    point = x.clone().requires_grad_()
    along = (point @ unit).abs() * (point @ unit) / point.norm(dim=1)
    (gradient,) = torch.autograd.grad(along.sum(), point)
    right = cosine.abs()[:, None] * unit
    found = dynamic(x, w)
    if isinstance(found, torch.Tensor) and found.shape == x.shape and not torch.allclose(found, right):
        if torch.allclose(found, gradient):
            raise Hint("that is the gradient: it adds up, but also follows how |cos| changes. W(x) holds |cos| fixed.")
        if torch.allclose(found, cosine[:, None] * unit):
            raise Hint("where the cosine is negative, the sign is wrong: the unit has |cos|.")
        if torch.allclose(found, cosine.abs()[:, None] * w):
            raise Hint("the unit has ŵ, w over its length.")
        if torch.allclose(found, unit.expand_as(x)):
            raise Hint("that is ŵ alone, which does not add up to the output: |cos| is missing.")
        if torch.allclose(found, right * x):
            raise Hint("that is W(x) times x, what each input contributes; the weights themselves are wanted.")
        gap = ((found * x).sum(1) - output).abs().max()
        if gap > 1e-6:
            raise Hint(f"W(x) · x does not add up to the output: off by up to {gap:.2g}.")
    compare("W(x)", found, right)


@exercise(
    "03.3",
    "Black pixels speak too",
    "Compute by hand, three minutes",
    text="""
    A pixel enters a B-cos network as (r, g, b, 1−r, 1−g, 1−b). The network's weights for a class at one pixel are
    (0.2, −0.1, 0.3, 0.5, 0.5, −0.2). How much does this pixel contribute if it is white, and how much if it is black?
    """,
    setup="from e2lib.course import exercises",
    start="""
    white = ...
    black = ...
    """,
    solution="""
    white = 0.2 - 0.1 + 0.3
    black = 0.5 + 0.5 - 0.2
    """,
    answer="white, black",
    why="""
    White is (1, 1, 1, 0, 0, 0), black (0, 0, 0, 1, 1, 1). With three channels alone a black pixel would be zero,
    and contribute nothing whatever the weights say. (W(x) depends on x: another pixel would also meet other
    weights.)
    """,
    mistakes=(("0.5 + 0.5 - 0.2", "0.0", "last three"), ("0.2 - 0.1 + 0.3", "1.2", "1 − 1")),
)
def black_pixels(white, black):
    compare(
        "white", white, 0.4, (1.2, "of a white pixel the last three channels are 1 − 1."), (0.8, "that is black's.")
    )
    compare(
        "black",
        black,
        0.8,
        (0.0, "of a black pixel the last three channels are not 0."),
        (1.2, "the first three are 0."),
    )


@exercise(
    "03.4",
    "How much of the logit comes from the background?",
    "Write a function, five minutes",
    text="""
    Write `inside_outside(contributions, masks)`: contribution maps (B, 1, H, W), signed, and masks (B, 1, H, W)
    bool, to two tensors (B,): what the pixels inside the box contribute to the logit, and what those outside do.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def inside_outside(contributions, masks):
        ...


    """,
    solution="""
    def inside_outside(contributions, masks):
        inside = (contributions * masks).sum((1, 2, 3))
        outside = (contributions * ~masks).sum((1, 2, 3))
        return inside, outside


    """,
    answer="inside_outside",
    why="""
    Both together are the logit less its bias, exactly: only a complete explanation can be divided up like that. EPG
    looks at positive contributions alone; here those against the class count as well.
    """,
    mistakes=(
        ("(contributions * masks)", "(contributions.clamp(min=0) * masks)", "against the class"),
        ("outside = (contributions * ~masks).sum((1, 2, 3))", "outside = 1 - inside", "add up"),
        (".sum((1, 2, 3))", ".mean((1, 2, 3))", "mean"),
        ("return inside, outside", "return outside, inside", "exchanged"),
        ("return inside, outside", "return inside", "two tensors"),
    ),
)
def background_share(inside_outside):
    maps, masks = random_maps()
    found = inside_outside(maps, masks)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint("two tensors are wanted, inside and outside.")
    inside, outside = ((maps * m).sum((1, 2, 3)) for m in (masks, ~masks))
    compare(
        "inside",
        found[0],
        inside,
        ((maps.clamp(min=0) * masks).sum((1, 2, 3)), "what speaks against the class belongs to the logit too."),
        ((maps * masks).mean((1, 2, 3)), "that is a mean; contributions add up."),
        (outside, "inside and outside are exchanged."),
    )
    compare(
        "outside",
        found[1],
        outside,
        (1 - inside, "inside and outside add up to the sum of the map, which is not 1."),
        ((maps.clamp(min=0) * ~masks).sum((1, 2, 3)), "what speaks against the class belongs to the logit too."),
    )


@exercise(
    "03.5",
    "From contributions to the answer",
    "Compute by hand, three minutes",
    text="""
    The contributions of a class add up to 1.3, in a network of 20 classes. What is its logit? (`math.log` is the
    natural logarithm.) Is the class predicted, that is, is the logit above 0? Answer True or False.
    """,
    setup="""
    import math

    from e2lib.course import exercises
    """,
    start="""
    logit = ...
    predicted = ...
    """,
    solution="""
    logit = 1.3 - math.log(20 - 1)
    predicted = logit > 0
    """,
    answer="logit, predicted",
    why="""
    Before the network sees anything, each of C classes has the logit −log(C − 1), a probability of 1/C.
    Contributions have to outweigh that.
    """,
    mistakes=(
        ("1.3 - math.log(20 - 1)", "1.3 + math.log(20 - 1)", "sign"),
        ("20 - 1", "20", "C − 1"),
        ("1.3 - math.log(20 - 1)", "1.3", "bias"),
        ("20 - 1", "10 - 1", "20 classes"),
        ("logit > 0", "logit < 0", "above 0"),
    ),
)
def from_contributions(logit, predicted):
    compare(
        "logit",
        logit,
        1.3 - math.log(19),
        (1.3 + math.log(19), "mind the sign of the bias."),
        (1.3 - math.log(20), "the bias is −log(C − 1)."),
        (1.3, "there is a bias, which was there before the network saw anything."),
        (1.3 - math.log(9), "here are 20 classes, not ten."),
        within=0.01,
    )
    if predicted is not False:
        raise Hint("predicted is True or False: is the logit above 0?")


@exercise(
    "03.6",
    "Why not detach?",
    "Predict, two minutes",
    text="""
    An explanation whose |cos| was cut off from the graph in the forward pass is used in a loss. What is wrong?

    - **a** the map
    - **b** the gradient of the loss with respect to the parameters
    - **c** both
    """,
    setup="from e2lib.course import exercises",
    start="wrong = ...",
    solution='wrong = "b"',
    answer="wrong",
    why="""
    The map is the same number for number, which is what makes the mistake hard to see: training runs, and goes
    another way. A comparison with finite differences finds it.
    """,
    mistakes=(('"b"', '"a"', "same"), ('"b"', '"c"', "same")),
)
def why_not_detach(wrong):
    hint = "the map needs |cos| held fixed, and cut off it is fixed: the map is the same."
    choose(wrong, "b", a=hint, c=hint)


MORE = """
Explain a class that is absent. Which colour does W(x) give to a white bird on snow, and why is it not white?
"""
