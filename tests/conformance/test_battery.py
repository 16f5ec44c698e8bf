"""Every check can fail: an algorithm that does one thing wrong fails the check of that thing, and no other."""

from __future__ import annotations

import pytest

from bench.conformance import CheckFailed, CheckSkipped, checks, properties

GOOD = (
    "good-optimizer",
    "good-adapter",
    "good-schedule",
    "good-selector",
    "good-freezer",
    "good-learner",
    "good-finish",
    "good-pruning",
    "good-average",
)

CAUGHT = {
    "positional": "facts/frozen-keyword-only-record",
    "unended": "facts/class-facts-have-their-types",
    "undocumented": "facts/docstring-names-its-source",
    "spaced-summary": "facts/entry-is-two-lines",
    "heavy": "facts/listing-is-light",
    "unbounded": "facts/hyperparameters-have-help-and-domain",
    "searches-outside": "facts/search-ranges-inside-the-domain",
    "takes-anything": "facts/bad-values-are-refused",
    "branches": "facts/names-no-workload",
    "private-parts": "facts/uses-public-modules-only",
    "boasts": "facts/claims-are-valid",
    "idle-group": "optimizer/every-parameter-in-one-group",
    "counts-runs": "optimizer/same-seed-same-bits",
    "draws-globally": "optimizer/randomness-from-the-run",
    "seeds-itself": "optimizer/randomness-from-the-run",
    "hides-state": "optimizer/resumes-bit-for-bit",
    "keeps-fp32": "optimizer/state-keeps-its-dtype",
    "remembers": "optimizer/nothing-kept-on-the-algorithm",
    "swallows-loss": "optimizer/closure",
    "one-rate": "optimizer/own-rate-per-group",
    "turns-around": "optimizer/plain-loop-with-a-scheduler",
    "skips-convolutions": "optimizer/every-shape-and-dtype",
    "needs-elements": "optimizer/empty-parameters",
    "divides-by-norm": "optimizer/zero-gradients",
    "coasts": "optimizer/missing-gradients",
    "halves-gradients": "optimizer/gradients-left-alone",
    "other-foreach": "optimizer/batched-is-single",
    "state-on-cpu": "optimizer/steps-without-storage",
    "forgets-on-meta": "optimizer/estimated-bytes-are-real",
    "forgets-models-on-meta": "run/estimated-bytes-are-real",
    "breaks-in-amp": "run/ends-finite",
    "climbs-models": "run/learns",
    "salted": "adapt/same-seed-same-bits",
    "seeded-salt": "adapt/randomness-from-the-run",
    "unclaimed": "adapt/new-parameters-claimed",
    "adapter-remembers": "adapt/nothing-kept-on-the-algorithm",
    "widens": "adapt/dtype-and-gradients",
    "hidden-offset": "adapt/state-carries-the-model",
    "other-shape-on-meta": "adapt/adapts-without-storage",
    "starts-elsewhere": "adapt/starts-from-the-base",
    "never-moves": "run/moves-what-is-trainable",
    "overshoots": "schedule/between-zero-and-one",
    "half-way": "schedule/reaches-its-peak",
    "counts-calls": "schedule/depends-on-the-step-alone",
    "schedule-draws": "schedule/randomness-from-the-run",
    "schedule-remembers": "schedule/nothing-kept-on-the-algorithm",
    "invents-rows": "selector/returns-rows",
    "square-weights": "selector/weights-are-weights",
    "spoils-batches": "selector/arguments-left-alone",
    "counts-selections": "selector/same-seed-same-bits",
    "selector-seeds-itself": "selector/randomness-from-the-run",
    "forgets-position": "selector/resumes-bit-for-bit",
    "selector-remembers": "selector/nothing-kept-on-the-algorithm",
    "adds-parameters": "freezer/keeps-parameters",
    "answers": "freezer/returns-nothing",
    "freezer-counts": "run/resumes-bit-for-bit",
    "freezer-draws": "freezer/randomness-from-the-run",
    "freezer-remembers": "freezer/nothing-kept-on-the-algorithm",
    "no-loss": "learner/returns-the-loss",
    "learner-draws": "learner/randomness-from-the-run",
    "learner-remembers": "learner/nothing-kept-on-the-algorithm",
    "shrinks-model": "finish/leaves-the-model",
    "finish-draws": "finish/randomness-of-finishing",
    "finish-remembers": "finish/nothing-kept-on-the-algorithm",
    "asks-too-much": "compression/some-point-is-served",
    "keeps-more": "compression/keeps-what-was-asked",
    "pruning-widens": "compression/finite-model-of-the-same-dtype",
    "leaves-mode": "compression/arguments-left-alone",
    "touches-norms": "compression/the-rest-stays",
    "pruning-counts": "compression/same-seed-same-bits",
    "pruning-seeds-itself": "compression/randomness-from-the-run",
    "pruning-remembers": "compression/nothing-kept-on-the-algorithm",
    "freezes-result": "compression/result-can-be-trained",
    "guesses-points": "compression/bare-points-are-refused",
    "unpicklable": "compression/works-in-another-process",
    "needs-the-moon": "merging/needs-and-information-are-known",
    "merge-leaves-mode": "merging/arguments-left-alone",
    "other-class": "merging/result-is-its-own-model",
    "merge-remembers": "merging/nothing-kept-on-the-algorithm",
    "merge-counts": "merging/same-seed-same-bits",
    "merge-seeds-itself": "merging/randomness-from-the-run",
    "merges-heads": "merging/heads-are-not-merged",
    "weighs-by-heads": "merging/heads-do-not-matter",
    "takes-the-first": "merging/every-dtype",
    "coarse-in-bf16": "merging/low-precision-is-rounding",
    "drifts": "merging/start-stays-the-start",
    "merge-unpicklable": "merging/works-in-another-process",
}

RESUMED, REPEATED, STOPPED = "run/resumes-bit-for-bit", "run/same-seed-same-bits", "run/ends-finite"

ALSO = {
    # what differs from time to time differs between any two things that are compared
    "counts-runs": {
        *(f"optimizer/{name}" for name in ("randomness-from-the-run", "resumes-bit-for-bit", "own-rate-per-group")),
        "optimizer/empty-parameters",
        REPEATED,
        RESUMED,
    },
    "salted": {"adapt/randomness-from-the-run", REPEATED, RESUMED},
    "counts-selections": {"selector/randomness-from-the-run", "selector/resumes-bit-for-bit", REPEATED, RESUMED},
    "pruning-counts": {
        f"compression/{name}"
        for name in ("randomness-from-the-run", "nothing-kept-on-the-algorithm", "result-can-be-trained")
    },
    "merge-counts": {
        f"merging/{name}"
        for name in ("randomness-from-the-run", "nothing-kept-on-the-algorithm", "heads-do-not-matter")
    },
    # what forgets or cannot be resumed alone cannot be resumed inside a run either
    "hides-state": {RESUMED},
    "counts-calls": {RESUMED},
    "forgets-position": {RESUMED},
    "forgets-on-meta": {"run/estimated-bytes-are-real"},
    "adds-parameters": {RESUMED, "run/estimated-bytes-are-real"},
    # the framework stops their runs
    "draws-globally": {STOPPED},
    "schedule-draws": {STOPPED},
    "spoils-batches": {STOPPED},
    "unclaimed": {STOPPED},
}
"""What else a wrong thing breaks, because the one follows from the other."""


def failures(name, registry):
    """Return the checks that ``name`` fails, with what they say."""
    found = {}
    for check in checks(name, registry):
        try:
            check()
        except CheckFailed as failed:
            found[check.name] = str(failed)
        except CheckSkipped:
            pass
    return found


@pytest.mark.parametrize("name", GOOD)
def test_what_the_wrong_ones_are_made_of_fails_nothing(name, wrong):
    assert failures(name, wrong) == {}


@pytest.mark.parametrize(("name", "check"), CAUGHT.items(), ids=list(CAUGHT))
def test_one_wrong_thing_fails_its_check_and_no_other(name, check, wrong):
    found = failures(name, wrong)
    assert check in found
    assert found.keys() - {check} == ALSO.get(name, set())
    assert found[check].strip()


def test_every_check_is_failed_by_something():
    assert {each.name for each in properties()} - {*CAUGHT.values(), *set().union(*ALSO.values())} == set()
