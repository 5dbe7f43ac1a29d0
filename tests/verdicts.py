"""`python -m tests.verdicts CLAIMS BEFORE AFTER` fails where verdicts differ between two results.csv."""

import sys

from e2lib.course import claims, plainly


def main(path: str, before: str, after: str) -> None:
    """Compare; SystemExit names the claims."""
    with plainly():
        found = claims.read(path)
        old, new = (claims.judge(found, claims.load(file)).groupby("claim").verdict.first() for file in (before, after))
    pairs = {claim.claim: [part.get(claim.claim, "no numbers") for part in (old, new)] for claim in found}
    changed = [f"{name}: {first} before, {then} now" for name, (first, then) in pairs.items() if first != then]
    if changed:
        sys.exit("\n".join(["verdicts that changed:", *changed]))
    print("no verdict changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
