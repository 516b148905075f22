"""Where others have reported what the study shows: an issue, read there, for a feature or a dialect of a peer."""

from __future__ import annotations

REPORTED = {
    # The gradient at -inf logits of ignored positions.
    ("torch cross_entropy", "NaN gradient of uncounted rows"): "https://github.com/pytorch/pytorch/issues/11551",
    # The gradient of a log-softmax that no class index follows.
    ("torch loss_parallel", "class probabilities"): "https://github.com/pytorch/pytorch/issues/190746",
    # NaN where the first tile of a row is -inf.
    ("flash-attention", "tile edges"): "https://github.com/Dao-AILab/flash-attention/issues/1930",
    # What a class weight does to soft labels.
    ("paddle cross_entropy", "class weights"): "https://github.com/PaddlePaddle/Paddle/issues/62009",
    # A mean that sample weights do not enter.
    ("keras on torch", "mean over all positions"): "https://github.com/keras-team/keras/issues/19740",
    ("keras on jax", "mean over all positions"): "https://github.com/keras-team/keras/issues/19740",
    # A label of 0 at a logit of -inf; optax has safe_softmax_cross_entropy since.
    ("optax dense", "0·∞ is NaN"): "https://github.com/google-deepmind/optax/issues/896",
}
