"""The licence: an engine that agrees gets it, each way of not agreeing is refused for that reason, and no other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.model import licence as module
from appliance.model.engine_cache import EngineKey
from appliance.model.licence import (
    Answer,
    Latency,
    Licence,
    LicenceError,
    Shown,
    Terms,
    agreement,
    decide,
    latency_of,
    read_licence,
    sample_digest,
    valid_for,
    write_licence,
)

TERMS = Terms(good=("good",), defects=("scratch", "dent"), review_at=0.4, fail_at=0.6, band=0.02, promised=0.01)
KEY = EngineKey("sha256:" + "ab" * 32, "10.3.0.30", "p3767-0005", 8, "8.7", "36.4.3", "int8", ("FP16", "INT8"), 1 << 30)
LATENCY = Latency(1.0, 1.2, 1.9, 2000)
BUNDLE, PLAN, SAMPLE = "sha256:b", "sha256:p", "sha256:s"


def answer(score: float | None) -> Answer:
    if score is None:
        return Answer("blind", "engine", None, None)
    return Answer("fail" if score >= 0.6 else "review" if score >= 0.4 else "pass", "scratch", score, 0.6)


def images(kind: str | None, scores: Sequence[tuple[float | None, float | None]]) -> list[Shown]:
    return [Shown(f"{kind}/{index}.png", kind, answer(was), answer(now)) for index, (was, now) in enumerate(scores)]


FINE = [
    *images("good", [(0.02, 0.021)] * 400), *images("scratch", [(0.97, 0.96)] * 60), *images("dent", [(0.91, 0.93)] * 60),
]  # fmt: skip


def licence(shown: Sequence[Shown], terms: Terms = TERMS, basis: module.Basis = "sample", golden: str | None = None) -> Licence:
    return decide(shown, terms, basis, golden, LATENCY, BUNDLE, PLAN, SAMPLE, KEY)


def test_an_engine_that_agrees_is_granted_with_nothing_to_remark() -> None:
    made = licence(FINE)
    assert (made.granted, made.reasons, made.remarks, made.agreement.flips) == (True, (), (), ())
    assert made.agreement.largest_difference == pytest.approx(0.02)
    (dent, scratch) = made.agreement.recall
    assert (dent.kind, scratch.kind, scratch.engine.hits, scratch.engine.of) == ("dent", "scratch", 60, 60)
    assert scratch.engine.low == pytest.approx(0.9404, abs=1e-3) and scratch.engine.high == 1.0


def test_one_clear_defect_that_passes_in_int8_is_refused_by_name() -> None:
    made = licence([*FINE, *images("scratch", [(0.95, 0.1)])])
    assert not made.granted and len(made.reasons) == 1
    assert "scratch/0.png (0.950 there, 0.100 here)" in made.reasons[0]


@pytest.mark.parametrize(
    ("kind", "was", "now", "granted"),
    [
        ("scratch", 0.95, 0.1, False),  # failed, passes
        ("scratch", 0.5, 0.3, False),  # was looked at, passes
        ("scratch", 0.41, 0.39, True),  # on the threshold of review
        ("scratch", 0.421, 0.39, False),  # just off it
        ("scratch", 0.95, 0.45, False),  # failed, is only looked at: `on_review: accept` lets it go
        ("scratch", 0.61, 0.59, True),  # on the threshold of fail
        ("good", 0.95, 0.1, False),  # the float model fails it: whatever its folder says
        ("good", 0.5, 0.3, True),  # a good part that need not be looked at any more
        (None, 0.95, 0.1, False),  # golden vector
        (None, 0.5, 0.3, True),
    ],
)
def test_what_counts_as_an_escape(kind: str | None, was: float, now: float, granted: bool) -> None:
    assert licence([*FINE, *images(kind, [(was, now)])]).granted is granted


def test_flips_near_a_threshold_are_told_apart_from_the_others() -> None:
    found = agreement([*FINE, *images("dent", [(0.61, 0.59), (0.7, 0.45), (0.41, 0.395)])], TERMS)
    assert [flip.near for flip in found.flips] == [True, False, True]


def test_a_step_over_two_thresholds_is_never_near() -> None:
    wide = replace(TERMS, review_at=0.59, band=0.02)
    near = Shown("a", "dent", Answer("fail", "dent", 0.605, 0.6), Answer("pass", None, 0.585, 0.6))
    far = Shown("b", "dent", Answer("fail", "dent", 0.625, 0.6), Answer("pass", None, 0.585, 0.6))
    assert [flip.near for flip in agreement([near, far], wide).flips] == [True, False]


def test_losses_on_the_threshold_of_one_class_all_one_way_are_refused() -> None:
    """Each is excused by itself; five of five the same way are INT8's doing."""
    made = licence([*FINE, *images("dent", [(0.41, 0.39)] * 5)])
    assert not made.granted and "dent: INT8 catches 60 of 65" in made.reasons[0] and "5 lost, 0 won" in made.reasons[0]


def test_losses_all_one_way_are_refused_where_the_interval_is_wide_too() -> None:
    """The float model misses many itself: 60 of 108 lies well within what its interval allows, eight of eight do not."""
    hard = [one for one in FINE if one.kind != "dent"] + images("dent", [(0.9, 0.9)] * 60 + [(0.1, 0.1)] * 40)
    made = licence([*hard, *images("dent", [(0.41, 0.39)] * 8)])
    assert not made.granted and "8 lost, 0 won" in made.reasons[0]
    assert licence([*hard, *images("dent", [(0.41, 0.39)] * 4)]).granted


def test_losses_and_gains_on_the_threshold_are_chance() -> None:
    assert licence([*FINE, *images("dent", [(0.41, 0.39)] * 5 + [(0.39, 0.41)] * 4)]).granted


def test_a_small_class_that_loses_half_is_refused_though_chance_might_do_it() -> None:
    shown = [one for one in FINE if one.kind != "dent"]
    made = licence([*shown, *images("dent", [(0.41, 0.39)] * 3 + [(0.9, 0.9)] * 2)])
    assert not made.granted and "dent" in made.reasons[0]


def test_another_class_does_not_make_up_for_a_lost_one() -> None:
    made = licence([*FINE, *images("dent", [(0.41, 0.39)] * 6), *images("scratch", [(0.39, 0.41)] * 6)])
    assert not made.granted and made.reasons[0].startswith("dent:")


def test_false_rejects_within_the_promise_are_granted_and_over_it_refused() -> None:
    many = [one for one in FINE if one.kind != "good"] + images("good", [(0.02, 0.02)] * 2000)
    assert licence([*many, *images("good", [(0.02, 0.7)] * 8)]).granted  # up to 0.78 %
    made = licence([*many, *images("good", [(0.02, 0.7)] * 16)])
    assert not made.granted and "INT8 fails 16 of 2016" in made.reasons[0] and "promises 1.00%" in made.reasons[0]


def test_a_sample_too_small_for_the_promise_lets_int8_add_no_false_reject() -> None:
    few = [one for one in FINE if one.kind != "good"] + images("good", [(0.02, 0.02)] * 50)
    made = licence(few)
    assert made.granted and "50 good images cannot show the promised 1.00%" in made.remarks[0]
    assert not licence([*few, *images("good", [(0.02, 0.7)])]).granted
    assert licence([*few, *images("good", [(0.7, 0.8)])]).granted  # the float model's own


def test_a_bundle_that_promises_nothing_lets_int8_add_no_false_reject() -> None:
    terms = replace(TERMS, promised=None)
    assert licence(FINE, terms).granted
    made = licence([*FINE, *images("good", [(0.02, 0.7)])], terms)
    assert not made.granted and "promises no share" in made.reasons[0]


@pytest.mark.parametrize(("was", "now", "who"), [(0.5, None, "engine"), (None, 0.5, "float model")])
def test_no_number_is_no_agreement(was: float | None, now: float | None, who: str) -> None:
    made = licence([*FINE, *images("good", [(was, now)])])
    assert not made.granted and f"the {who} gave no number on 1 of 521 images" in made.reasons


def test_golden_vectors_that_differ_refuse_whatever_the_images_say() -> None:
    made = licence(FINE, golden="vector 3 differs")
    assert not made.granted and made.reasons == ("golden vectors: vector 3 differs",)


def test_golden_only_says_so() -> None:
    made = licence(images(None, [(0.1, 0.1)] * 8), basis="golden only")
    assert made.granted and made.remarks[0].startswith("golden only: ") and made.agreement.recall == ()


def test_classes_without_images_are_remarked() -> None:
    made = licence([one for one in FINE if one.kind != "dent"])
    assert made.granted and made.remarks == ("no held-out image of dent: of them this licence says nothing",)


def test_it_holds_for_its_own_engine_and_bundle_only() -> None:
    made = licence(FINE)
    assert valid_for(made, KEY, PLAN, BUNDLE) is None
    assert "another revision" in (valid_for(made, KEY, PLAN, "sha256:other") or "")
    assert "built since" in (valid_for(made, KEY, "sha256:other", BUNDLE) or "")
    assert "tensorrt (10.3.0.30 there, 10.16.2.10 here)" in (
        valid_for(made, replace(KEY, tensorrt="10.16.2.10"), PLAN, BUNDLE) or ""
    )


def test_a_refused_licence_is_valid_for_nothing() -> None:
    refused = licence([*FINE, *images("scratch", [(0.95, 0.1)])])
    assert "was refused" in (valid_for(refused, KEY, PLAN, BUNDLE) or "")


def test_written_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    made = licence([*FINE, *images("dent", [(0.61, 0.59)])])
    write_licence(tmp_path / "licence.json", made)
    assert read_licence(tmp_path / "licence.json") == made
    assert read_licence(tmp_path / "none.json") is None
    assert [one.name for one in tmp_path.iterdir()] == ["licence.json"]


def test_the_same_licence_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_licence(tmp_path / name, licence(FINE))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("left", [0, 100, 0.5, -2])
def test_a_cut_licence_is_refused(tmp_path: Path, left: float) -> None:
    path = tmp_path / "licence.json"
    write_licence(path, licence(FINE))
    size = path.stat().st_size
    os.truncate(path, int(size * left if left == 0.5 else left if left >= 0 else size + left))
    with pytest.raises(LicenceError, match="run engine licence again"):
        read_licence(path)


def test_a_licence_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "licence.json"
    write_licence(path, licence([*FINE, *images("scratch", [(0.95, 0.1)])]))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "granted": True, "reasons": []}))
    with pytest.raises(LicenceError, match="altered"):
        read_licence(path)


@pytest.mark.parametrize("change", [{"schema": 2}, {"granted": "yes"}, {"key": None}, {"digest": 5}])
def test_a_licence_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "licence.json"
    write_licence(path, licence(FINE))
    content = {**json.loads(path.read_text()), **change}
    if "digest" not in change:
        content.pop("digest")
        content["digest"] = module._content_digest(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LicenceError):
        read_licence(path)


def test_the_sample_is_known_by_its_bytes_and_labels() -> None:
    one = [("good/a.png", "sha256:1"), ("dent/b.png", "sha256:2")]
    assert sample_digest(one) == sample_digest(one[::-1])
    assert sample_digest(one) != sample_digest([("good/b.png", "sha256:2"), ("dent/a.png", "sha256:1")])


def test_percentiles_are_of_the_runs_themselves() -> None:
    found = latency_of([float(one) for one in range(1, 1001)])
    assert (found.p50_ms, found.p99_ms, found.p999_ms, found.of) == (500.0, 990.0, 999.0, 1000)
    assert latency_of([7.0]).p999_ms == 7.0
    with pytest.raises(ValueError, match="no run"):
        latency_of([])
