"""The golden vectors: what is in a set, that it is the same every time, and that it finds what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from unixent import PositionStats
from unixent_conformance import vectors
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Tier
from unixent_conformance.vectors import files, selection, writing
from unixent_conformance.vectors.checking import Golden
from unixent_mutants import mutants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vectors.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "golden"
    vectors.export(path)
    return path


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return vectors.read(folder)[0]


def test_manifest_obeys_the_schema_that_ships(folder: Path) -> None:
    schema = json.loads((folder / files.SCHEMA).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    manifest = json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    checker.validate(manifest)
    manifest["vectors"][0]["expected"] = "0.25"
    with pytest.raises(jsonschema.ValidationError):
        checker.validate(manifest)


def test_export_writes_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    code = f"from unixent_conformance import vectors; vectors.export({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    for name in (files.MANIFEST, files.ARRAYS, files.SCHEMA):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_every_feature_of_single_calls_has_small_vectors(folder: Path, manifest: dict[str, Any]) -> None:
    features = {case.feature for case in catalogue()} - selection.NO_VECTOR
    assert {vector["feature"] for vector in manifest["vectors"]} == features == set(selection.REASONS)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    dtypes = {vector["feature"]: set() for vector in manifest["vectors"]}
    for vector in manifest["vectors"]:
        dtypes[vector["feature"]].update(need for need in vector["needs"] if need.startswith("dtype:"))
    assert len(dtypes["confident rows"]) == 4


def test_only_cases_of_several_calls_have_no_vector() -> None:
    for case in catalogue():
        if case.feature in selection.NO_VECTOR:
            twice = case.quantity in ("second derivatives", "gradients of two passes")
            of_a_framework = case.feature == "memory layout" or twice or case.build().frozen
            assert of_a_framework or case.property is not None, case.id


def test_every_output_and_every_tail_has_vectors_of_value_and_gradients(manifest: dict[str, Any]) -> None:
    shown = {(v["output"], v["function"]) for v in manifest["vectors"] if "output" in v}
    outputs = set(PositionStats._fields) - {"loss"}
    assert {output for output, _ in shown} == outputs
    for form in ("position_stats", "linear_position_stats"):
        assert outputs == {output for output, function in shown if function == form}
    graded = {"log_prob", "entropy", "logsumexp", "selected_log_prob"}
    assert {output for output, function in shown if function == "position_stats_and_grad"} == graded
    sparse = {(v["topk"]["tail"], v["asks"]) for v in manifest["vectors"] if "topk" in v}
    questions = ("loss", "logits gradient", "target gradient", "linear gradients")
    assert sparse >= {(tail, asks) for tail in ("drop", "renormalize", "bucket") for asks in questions}
    assert {v["topk"]["values"] for v in manifest["vectors"] if "topk" in v} == {"probs", "log_probs"}


def test_indices_and_what_holds_are_exact(folder: Path) -> None:
    manifest, arrays = vectors.read(folder)
    exact = [part for v in manifest["vectors"] for part in v["expected"] if part["dtype"] in ("int64", "bool")]
    assert {part["name"] for part in exact} == {"prediction", "correct", "rank", "top_index"}
    assert not any(arrays[part["bound"]].any() for part in exact)


def test_every_array_is_used_and_kept_once(folder: Path) -> None:
    manifest, arrays = vectors.read(folder)
    used = {key for vector in manifest["vectors"] for key in vector["inputs"].values()}
    used |= {part[key] for v in manifest["vectors"] for part in v["expected"] for key in ("value", "bound")}
    assert used == set(arrays)
    contents = {(a.dtype.name, a.shape, a.tobytes()) for a in arrays.values()}
    assert len(contents) == len(arrays)


def test_arrays_come_back_bit_by_bit(folder: Path) -> None:
    manifest, arrays = vectors.read(folder)
    calls = {case.id: case.build() for case in catalogue()}
    seen = set()
    for vector in manifest["vectors"]:
        for name, array in calls[vector["id"]].arrays().items():
            stored = arrays[vector["inputs"][name]]
            assert (stored.dtype, stored.shape, stored.tobytes()) == (array.dtype, array.shape, array.tobytes())
            seen.add(array.dtype.name)
    assert {"float16", "bfloat16", "float32", "float64", "int64", "uint8", "bool"} <= seen


def test_a_golden_value_is_compared_within_its_bound() -> None:
    """ln 3 of three equal logits, and log1p(exp(-20)) of a confident row: what the definition says, not this code."""
    part = Golden("loss", np.float64(1.0986122886681098), np.float64(1e-15), "float64")
    assert part.compare(np.asarray(np.log(3.0))).ok
    assert not part.compare(np.asarray(np.log(3.0) + 1e-14)).ok
    exact = Golden("loss", np.zeros(2), np.zeros(2), "float64")
    assert exact.compare(np.zeros(2)).ok
    assert not exact.compare(np.array([0.0, 5e-324])).ok
    special = Golden("loss", np.array([np.nan, np.inf]), np.zeros(2), "float32")
    assert special.compare(np.array([np.nan, np.inf], np.float32)).ok
    for wrong in ([0.0, np.inf], [np.nan, -np.inf], [np.nan, np.nan], [np.nan, 1e38]):
        assert not special.compare(np.array(wrong, np.float32)).ok
    assert "dtype float64" in special.compare(np.array([np.nan, np.inf])).reason


def test_bounds_cover_every_rounding_and_no_more(manifest: dict[str, Any]) -> None:
    """The exact value rounded to its dtype is always within the bound, and twice the bound away never is."""
    for case in catalogue(Tier.QUICK, features=("class indices", "label smoothing", "softcap")):
        for part in writing.expected(case.build(), case.quantity):
            value, bound = writing.total_bound(part)
            golden = Golden(part.name, value, bound, part.dtype)
            rounded = part.estimate.value.astype(files.dtype_of(part.dtype))
            assert golden.compare(rounded).ok
            if part.dtype == "float32":
                assert not golden.compare((value + 2 * bound).astype(np.float32)).ok


def test_the_embedded_backend_passes(folder: Path) -> None:
    report = vectors.check(folder, "numpy")
    assert report.ok, [(result.id, result.detail) for result in report.cases if not result.verdict.ok]
    assert report.counts["matches"] == len(report.cases) > 900


WRONG = [
    "MaskAsBool",
    "FlushesToZero",
    "OutOfRangeNeverRaises",
    "MeanOverAllPositions",
    "LogitsInHalf",
    "LastChunkDropped",
    "EntropyOfLogSoftmax",
    "RankCountsEqualLogits",
    "BucketIsDropped",
    "LogarithmsAsProbabilities",
]


@pytest.mark.parametrize("name", WRONG)
def test_check_rejects_wrong_implementations(folder: Path, name: str) -> None:
    report = vectors.check(folder, mutants()[name]().implementation())
    wrong = {result.feature for result in report.cases if not result.verdict.ok}
    assert wrong & set(mutants()[name].features), wrong


def test_a_stored_answer_decides_not_the_oracle(folder: Path, tmp_path: Path) -> None:
    """A set in which one value was changed fails at that vector alone."""
    manifest, arrays = vectors.read(folder)
    first = next(v for v in manifest["vectors"] if v["feature"] == "mask" and v["asks"] == "loss")
    arrays[first["expected"][0]["value"]] = arrays[first["expected"][0]["value"]] * 1.01
    store = files.Store()
    renamed = {name: store.add(array) for name, array in arrays.items()}
    first["inputs"] = {name: renamed[key] for name, key in first["inputs"].items()}
    first["expected"][0].update({name: renamed[first["expected"][0][name]] for name in ("value", "bound")})
    raw = store.serialized()
    manifest["arrays"]["sha256"] = hashlib.sha256(raw).hexdigest()
    manifest["vectors"] = [first]
    files.write(tmp_path, manifest, raw)
    (result,) = vectors.check(tmp_path, "numpy").cases
    assert result.verdict.value == "silently wrong"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(version="2.0"), "expected version 1.x; got 2.0"),
        (lambda m: m.update(format="other"), "expected format 'unixent-vectors'"),
        (lambda m: m["arrays"].update(sha256="0" * 64), "not those that the manifest was written with"),
        (lambda m: m["vectors"][0].pop("inputs"), "KeyError: 'inputs'"),
    ],
)
def test_a_malformed_set_raises(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    manifest = json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    files.write(tmp_path, manifest, (folder / files.ARRAYS).read_bytes())
    with pytest.raises(vectors.Malformed, match=re.escape(said)):
        vectors.check(tmp_path, "numpy")


def test_version_and_schema_match_the_log_of_versions() -> None:
    """A change of the schema is a change of meaning: it needs an entry, with the schema's new digest."""
    entries = re.findall(r"^### (\d+\.\d+)$.*?schema `([0-9a-f]{16})`", PAGE.read_text("utf-8"), re.M | re.S)
    version, digest = entries[0]
    assert version == files.VERSION
    assert hashlib.sha256(files.schema().encode()).hexdigest()[:16] == digest


def unixent(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unixent", "vectors", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_commands_export_a_set_and_hold_a_backend_to_it(tmp_path: Path) -> None:
    done = unixent("export", "golden", "--feature", "mask", "--feature", "bad input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+ vectors, version 1\.\d, \d\.\d MB in golden", done.stdout)
    done = unixent("check", "golden", "--backend", "numpy", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mask" in done.stdout
    done = unixent("check", "golden", "--implementation", "unixent_mutants:MaskAsBool", cwd=tmp_path)
    assert done.returncode == 1
    assert "silently wrong mask/" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "golden"], "expected either --backend or --implementation"),
        (["check", "nowhere", "-b", "numpy"], "expected a set of vectors"),
        (["export", "golden", "--feature", "no such"], "no such feature: no such"),
    ],
)
def test_mistakes_at_the_prompt(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = unixent(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


READER_CHECKS = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("numpy", "unixent", "safetensors")]
manifest, arrays = read("golden")
print(len(arrays), agree(manifest, arrays))
"""


def test_reader_of_the_page_in_plain_python(folder: Path) -> None:
    """Isolated and without site-packages: nothing but the standard library can be imported."""
    reader, textbook = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)[:2]
    function = reader[reader.index("def ") :]
    assert len(function.splitlines()) <= 10, "the page says ten lines"
    code = reader + textbook + READER_CHECKS
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=folder.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    arrays, agreeing = map(int, done.stdout.split())
    assert arrays == len(vectors.read(folder)[1])
    assert agreeing > 40
