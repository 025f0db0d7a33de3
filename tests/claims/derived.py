"""Strong sentences that need no test, because the page derives them.

`DERIVED[page]` has pairs: the sentence, and the place on the same page (a heading, or the words
in which the derivation begins) where it is derived, defined, or cited.
"""

DERIVED: dict[str, list[tuple[str, str]]] = {
    "05": [
        (
            "value cannot be converted to type c10::Half without overflow",
            "bfloat16 and float32 near 3.4e38",
        ),
        ("the same for every sequence and head", "axes of size 1 are repeated"),
    ],
    "06": [
        (
            "Parameters and projections cost the same for every H; so do the products",
            "whose FLOPs are 2·L·S·E each",
        ),
    ],
    "deeper_one_small": [
        (
            "So T − m is uncorrelated with every function of slice 0 and every function of slice 1",
            "Given slice 1 alone, each payload is equally likely to be the chosen one",
        ),
        ("Adding such a sum to m cannot bring it closer to T", "So T − m is uncorrelated"),
        ("This holds for any parameters, any divisor", "The output is a sum over heads"),
    ],
    "deeper_positions": [
        ("It cannot tell forward from back", "The dot product of two places then depends on"),
        ("its arithmetic cannot", "which no product of two matrices replaces"),
    ],
}
