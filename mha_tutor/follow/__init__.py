"""Follow every element of a tensor: through reshape and transpose, and into a broadcast.

`follow` records what is done to a tensor and draws it; `compare` puts two recordings side by
side; `follow_mask` shows which mask element governs which score.
"""

from mha_tutor.follow.compare import Comparison, compare
from mha_tutor.follow.mask import MaskFollower, follow_mask
from mha_tutor.follow.recording import Recording, follow
from mha_tutor.follow.stages import Stage

__all__ = [
    "Comparison",
    "MaskFollower",
    "Recording",
    "Stage",
    "compare",
    "follow",
    "follow_mask",
]
