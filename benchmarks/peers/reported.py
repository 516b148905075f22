"""Where others have reported what the study shows: an issue for an implementation's feature, each read there."""

from __future__ import annotations

REPORTED = {
    ("flash-attention", "tile edges"): "https://github.com/Dao-AILab/flash-attention/issues/1930",
}
