"""Print how many sentences the ledger holds: `python -m tests.claims`."""

from collections import Counter

from .count import claims

if __name__ == "__main__":
    counted = Counter(claim.page for claim in claims())
    for page, number in sorted(counted.items()):
        print(f"{number:4}  {page}")
    print(f"{counted.total():4}  claims in all")
