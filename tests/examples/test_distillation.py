"""Students approach their teacher from what the file holds, and the bucket keeps what the other tails lose."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs the extra "torch"')
import charlm  # noqa: E402
import corpus  # noqa: E402
import distillation  # noqa: E402

K = 10


class Setting(NamedTuple):
    teacher: charlm.Model
    windows: torch.Tensor
    exam: distillation.Exam
    path: Path
    vocabulary: int


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A teacher of little training, the best of its log-probabilities on disk, and text to judge students on."""
    chunks, vocabulary = charlm.encode(corpus.text(), 0)
    torch.manual_seed(0)
    teacher = charlm.Model(vocabulary)
    assert len(list(charlm.fit(teacher, charlm.fused, chunks, 20))) == 20
    windows = distillation.cut(chunks)
    path = tmp_path_factory.mktemp("distillation") / "teacher.npz"
    distillation.store(teacher, windows[:200], K, path)
    return Setting(teacher, windows[:200], distillation.Exam(teacher, windows[200:216]), path, vocabulary)


def test_the_file_holds_the_largest_of_the_dense_softmax(setting: Setting) -> None:
    file = np.load(setting.path)
    with torch.no_grad():
        dense = torch.log_softmax(setting.teacher.scores(setting.teacher(setting.windows[:, :-1])), -1)
    torch.testing.assert_close(
        torch.from_numpy(file["log_probs"]).float(), dense.topk(K).values, rtol=2**-10, atol=1e-5
    )
    assert file["ids"].dtype == np.int16
    assert setting.path.stat().st_size < 4.1 * K * setting.windows[:, 1:].numel() + 1000


def test_the_exam_is_the_divergence_from_the_whole_distribution(setting: Setting) -> None:
    torch.manual_seed(1)
    student = charlm.Model(setting.vocabulary, distillation.WIDTH)
    with torch.no_grad():
        of_student = torch.log_softmax(student.scores(student(setting.exam.windows[:, :-1])), -1)
    p = setting.exam.probs.double()
    expected = (p * (p.log() - of_student)).sum(-1).mean().item()
    assert setting.exam(student, 0).kl == pytest.approx(expected, rel=1e-4)
    assert setting.exam(setting.teacher, 0).kl == pytest.approx(0, abs=1e-5)


def test_students_approach_the_teacher_and_the_bucket_loses_least(setting: Setting) -> None:
    target_of = distillation.targets(setting.path, setting.windows)
    assert list(target_of) == ["hard labels", "drop", "renormalize", "bucket"]
    curves = {
        name: distillation.distil(target, setting.windows, setting.exam, setting.vocabulary, 15, 0)
        for name, target in target_of.items()
    }
    for name in ("hard labels", "bucket"):
        first, last = curves[name]
        assert (first.step, last.step) == (0, 15)
        assert last.kl < first.kl
    last = {name: curve[-1].kl for name, curve in curves.items()}
    assert last["bucket"] <= last["drop"]
    assert last["bucket"] <= last["renormalize"]
