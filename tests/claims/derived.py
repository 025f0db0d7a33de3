"""Strong sentences that need no test, because the page derives them.

`DERIVED[page]` has pairs: the sentence, and the place on the same page (a heading, or the words
in which the derivation begins) where it is derived, defined, or cited.
"""

DERIVED: dict[str, list[tuple[str, str]]] = {}
