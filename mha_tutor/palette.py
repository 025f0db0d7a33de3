"""The one color and the one marker that each head has in every figure of the book."""

__all__ = ["HEAD_COLORS", "HEAD_GLYPHS", "HEAD_MARKERS"]

HEAD_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
HEAD_MARKERS = ("o", "s", "^", "D")  # as matplotlib names them
HEAD_GLYPHS = ("●", "■", "▲", "◆")  # the same as text
