"""Figures in which pointing at an element lights it everywhere, with no script and no kernel."""
