"""Every rule of verification, as data: what it demands, what follows where it is broken, and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effect = Literal["reject", "needs reproduction", "note"]

REJECT, REPRODUCE, NOTE = "reject", "needs reproduction", "note"


@dataclass(frozen=True)
class Rule:
    """What an honest bundle fulfils, what follows where it does not, and the reason that is printed then."""

    effect: Effect
    demands: str
    reason: str


RULES: dict[str, Rule] = {
    # -- the file ----------------------------------------------------------------------------------------------------
    "readable": Rule("reject", "the file is a bundle that is safe to open, and its manifest is right", "{why}"),
    "manifest": Rule(
        "reject", "the manifest says what the records say", "the manifest says {key} {said!r}; the records say {found}"
    ),
    "identity": Rule(
        "reject", "a trial's folder is the hash of its identity", "{run} has the identity {found}: it was edited"
    ),
    "rows": Rule(
        "reject",
        "every row of both tables is what the event log gives, column by column",
        "{table}: {column} of {run} is {said}, and {found} by its events",
    ),
    "tables": Rule(
        "reject", "both tables have the rows of all trials and no others", "{table} has {said} rows; the events {found}"
    ),
    # -- code and rules ----------------------------------------------------------------------------------------------
    "source": Rule(
        "reject",
        "the snapshot of every algorithm has the hash that its trials say",
        "the source of {algorithm} hashes to {found}; its trials say {said}",
    ),
    "protocol": Rule(
        "reject",
        "the rules of a protocol are those of the installed one of its version",
        "{protocol} {version} has other rules than the installed protocol of that version",
    ),
    "protocol-missing": Rule(
        "reject", "the rules of every protocol are in the bundle", "{run} belongs to a protocol that is not here"
    ),
    "protocol-unknown": Rule(
        "needs reproduction",
        "the protocol is installed in the version that was used",
        "{protocol} {version} is not installed here: its rules are the submitter's",
    ),
    "versions": Rule(
        "reject",
        "all trials of a comparison ran with the same bench and the same torch",
        "{case} mixes versions of {package}: {found}",
    ),
    "bench-version": Rule(
        "needs reproduction",
        "the trials ran with this version of bench (major.minor)",
        "{case} was measured with bench {said}; this is {found}",
    ),
    # -- the problem -------------------------------------------------------------------------------------------------
    "workload": Rule(
        "reject",
        "target, metric, budget and limits are those of the installed workload",
        "{run}: {fact} is {said}; the workload has {found}",
    ),
    "workload-version": Rule(
        "reject",
        "the workload has the installed version (major.minor)",
        "{case} was measured on version {said} of the workload; {found} is installed, and they do not compare",
    ),
    "workload-unknown": Rule(
        "needs reproduction",
        "the workload is installed here",
        "{case}: its target, budget and data were not checked: {why}",
    ),
    "data": Rule(
        "reject",
        "the data are the workload's own",
        "{case} was measured on other data: {said} is not {found} of the source {source}",
    ),
    "data-unknown": Rule(
        "needs reproduction",
        "the data are here, so that their hash can be compared",
        "{case}: the data could not be checked: {why}",
    ),
    # -- what was asked ----------------------------------------------------------------------------------------------
    "seeds": Rule(
        "reject",
        "the seeds are 0, 1, 2 and so on, each once, at least as many as the protocol asks for",
        "{setting} has the seeds {said}; the protocol asks for {found}",
    ),
    "paired": Rule(
        "reject",
        "beside every seed ran the same seed of the reference",
        "seeds {said} of {setting} have no {reference}",
    ),
    "unpaired": Rule(
        "needs reproduction",
        "the reference has no seeds that the entrant lacks",
        "{reference} has the seeds {said}, which {setting} lacks",
    ),
    "complete": Rule("reject", "every study has all its points, each once", "study {study} of {setting} {lacks}"),
    "points": Rule(
        "reject",
        "the hyperparameters are those of the protocol's point",
        "{run}: {name} is {said}; the protocol's point is {found}",
    ),
    "selection": Rule(
        "reject",
        "what a study selects by the protocol's rule ran again, with the seeds of the protocol, and nothing else did",
        "study {study} of {setting}: {what}",
    ),
    "settings": Rule(
        "needs reproduction",
        "a protocol of one setting has one setting",
        "{case} has {said} settings of {algorithm}: the best of several flatters",
    ),
    "published": Rule(
        "note",
        "the setting is the published one",
        "{setting} is not the published setting: {said}",
    ),
    # -- the reference -----------------------------------------------------------------------------------------------
    "reference": Rule(
        "reject", "the trials name the workload's reference", "{run} is compared with {said}; the reference is {found}"
    ),
    "reference-missing": Rule(
        "reject", "the reference's trials are in the bundle", "{case} has no trials of its reference {reference}"
    ),
    "device": Rule(
        "reject",
        "both sides of a comparison ran on one device class",
        "{case}: {reference} ran on {said}; only trials of one device class compare",
    ),
    "device-facts": Rule(
        "reject", "the device class is what the facts say", "{run}: {fact} is {said}; of {device} it is {found}"
    ),
    "reference-setting": Rule(
        "reject",
        "the reference, and what fills other slots, is as the workload tunes it",
        "{run}: {part} ran with {name} = {said}; the workload tunes it to {found}",
    ),
    "reference-source": Rule(
        "reject",
        "the source of the reference is that of the installed package of the same version",
        "{part} {version} of the bundle is not the installed {part} {version}: its source differs",
    ),
    "reference-version": Rule(
        "needs reproduction",
        "the package of the reference is installed in the same version",
        "{part} is of version {said}; {found} is installed, with another source",
    ),
    "reference-interval": Rule(
        "reject",
        "what the reference needed lies in the stored interval",
        "{case}: {reference} has a {measure} of {said}; the stored interval is {low} to {high}",
    ),
    "reference-hits": Rule(
        "reject",
        "the reference reached the target about as often as stored",
        "{case}: {reference} reached the target in {said}; stored are {found}",
    ),
    "reference-unknown": Rule(
        "needs reproduction",
        "there is a stored interval of the reference",
        "{case}: no interval of {reference} is stored for this tier and protocol",
    ),
    # -- what happened -----------------------------------------------------------------------------------------------
    "events": Rule("reject", "events are in order, from a start to an end", "{run}: {what}"),
    "unfinished": Rule("reject", "every trial has ended", "{run} was interrupted and not finished"),
    "grid": Rule(
        "reject",
        "it was evaluated at the steps of the tier and no others, within the budget",
        "{run} was evaluated at step {said}; the tier evaluates at {found}",
    ),
    "quality": Rule(
        "reject", "the quality is the workload's metric", "{run}, step {step}: quality is {said}, {metric} {found}"
    ),
    "outcome": Rule("reject", "the outcome follows from the curve", "{run} ended as {said!r}; by its curve {found}"),
    "clock": Rule("reject", "time and steps go forward", "{run}, step {step}: {name} falls from {said} to {found}"),
    "sum": Rule(
        "reject",
        "the charged time is the sum of its sections",
        "{run}, step {step}: time_s is {said}, and its sections are {found}",
    ),
    "cpu": Rule(
        "reject",
        "a process cannot use more CPU seconds than its cores had",
        "{run}: {said} CPU seconds in {found} s charged on {cores} cores",
    ),
    "wall": Rule(
        "reject",
        "charged and uncharged time fit into the wall-clock time, and that between start and end",
        "{run}: {what} takes {said} s, more than the {found} s of {whole}",
    ),
    "unaccounted": Rule(
        "reject",
        "between evaluations no more time is in no section than in the reference's trials",
        "{setting}: {said} s between evaluations are in no section, {found} s in trials of {reference}",
    ),
    "evaluation-work": Rule(
        "reject",
        "an evaluation takes as long as the reference's",
        "{setting}: an evaluation takes {said} times as long as one of {reference}; up to {found} times is normal",
    ),
    "same-start": Rule(
        "reject",
        "one seed is one start: before the first step both sides have the same quality",
        "{run} starts at quality {said}, the same seed of {reference} at {found}",
    ),
    "copies": Rule("reject", "two seeds have two curves", "{run} has the very curve of {other}"),
    # -- what is claimed ---------------------------------------------------------------------------------------------
    "extraordinary": Rule(
        "needs reproduction",
        "the target is reached in more than half the steps of the tuned reference",
        "{setting} takes {said} of the steps of {reference}: so much is to be shown twice",
    ),
    "time-not-ranked": Rule(
        "note",
        "the machine was listed and not busy, so that times rank",
        "{case}: {why}: its times do not rank, its steps do",
    ),
    "failed": Rule("note", "no trial failed", "{run} failed: {outcome}: {why}"),
}
"""By name, in the order in which they are told."""


_OF_WORKLOAD = (
    *("workload", "workload-version", "data", "data-unknown", "grid", "unaccounted", "same-start"),
    *("reference", "reference-setting", "reference-source", "reference-version", "reference-interval"),
    *("reference-hits", "reference-unknown"),
)
UNSEEN: dict[str, tuple[str, ...]] = {
    "readable": tuple(RULES),
    "workload-unknown": _OF_WORKLOAD,
    "workload-version": ("workload", "data", "data-unknown"),
    "data-unknown": ("data",),
    "protocol-missing": ("seeds", "paired", "unpaired", "complete", "points", "selection", "settings", "published"),
    "reference-missing": ("paired", "unpaired", "evaluation-work", "unaccounted", "same-start", "extraordinary"),
    "reference-unknown": ("reference-interval", "reference-hits"),
}
"""What is not looked at somewhere, where a rule is not fulfilled."""
