"""Where others have reported what the study shows: an issue for an implementation's feature, each read there."""

from __future__ import annotations

REPORTED = {
    # The gradient of a log-softmax that no class index follows.
    ("torch loss_parallel", "class probabilities"): "https://github.com/pytorch/pytorch/issues/190746",
    # NaN where the first tile of a row is -inf.
    ("flash-attention", "tile edges"): "https://github.com/Dao-AILab/flash-attention/issues/1930",
    # What a class weight does to soft labels.
    ("paddle cross_entropy", "class weights"): "https://github.com/PaddlePaddle/Paddle/issues/62009",
}
