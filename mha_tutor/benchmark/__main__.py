"""Run as `python -m mha_tutor.benchmark`."""

from mha_tutor.benchmark import main

main()
