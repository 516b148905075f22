"""Where others have reported what the study shows: an issue for an implementation's feature, each read there."""

from __future__ import annotations

REPORTED = {
    # NaN where the first tile of a row is -inf.
    ("flash-attention", "tile edges"): "https://github.com/Dao-AILab/flash-attention/issues/1930",
    # What a class weight does to soft labels.
    ("paddle cross_entropy", "class weights"): "https://github.com/PaddlePaddle/Paddle/issues/62009",
}
