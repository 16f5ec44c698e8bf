"""What the numbers of the report mean, and what they do not, in words."""

from __future__ import annotations

MEANS = {
    "Steps and time to target": (
        "How much training it took until the first evaluation that met the target, interpolated between evaluations. "
        "The value is the geometric mean of the runs that reached it; a miss has no time and is never averaged in. It"
        " shows under “reached”, and in the expected cost: all steps spent, on misses too, divided by the hits."
    ),
    "Time": (
        "Building adapters and optimizer, waiting for data, forward, backward and the optimizer's step. Imports, "
        "evaluation and checkpoints are not charged. A time from a busy machine carries a star and does not rank; "
        "what another machine can reproduce are steps."
    ),
    "Brackets": (
        "The confidence interval over independent repetitions (seeds, or whole tuning studies), at 95% unless the "
        "protocol says otherwise. Few repetitions make it wide, and that width is honest."
    ),
    "Ratio to the reference": (
        "This algorithm divided by the tuned reference of the same board: 0.8 is a fifth less. Where the interval "
        "contains 1, no difference is shown. The p-values are corrected for the number of comparisons (Holm)."
    ),
    "Group": (
        "Group 1 is the leader and the rows after it that are not shown to be worse, up to the first one that is: "
        "that one leads the next group. The order within a group means nothing."
    ),
    "Place in parentheses": (
        "A position in the list and no rank: too few repetitions, a busy machine, or a protocol that never ranks."
    ),
    "Detectable speed-up": (
        "What these repetitions would show four times in five, given their noise. A smaller difference may be there "
        "unseen: “not told apart” is not “equal”."
    ),
    "Memory": (
        "The peak of the whole process: the driver's count on a GPU, the resident set on a CPU, framework included. "
        "The optimizer's state is counted exactly."
    ),
    "Profile score": (
        "The mean over workloads of (4 − r) / 3, never below 0, where r is the cost divided by the lowest of the "
        "group, and a miss is infinite. It depends on who else is in the group. The ratio to the reference does not, "
        "and comes first."
    ),
}
"""The terms of the tables."""

LIMITS = (
    (
        "A board speaks about its own workload, tier, data, protocol and device class. It is no evidence about larger"
        " models, other data or longer training."
    ),
    "Different boards do not compare, however alike their names are.",
)
"""What no board says."""

RULES = {
    "published": (
        "Under a protocol of published settings the reference is tuned and the others are not: a row says how far its"
        " published setting carries here, not how good the algorithm could be."
    ),
    "space": (
        "Under a protocol that searches settings every algorithm has the same number of points, from a space that was"
        " fixed beforehand. More tuning could change the order."
    ),
    "learning-rate": (
        "Under a protocol that searches the learning rate alone, every other hyperparameter stays as published."
    ),
    "imported": "Imported trials were run, tuned and timed by others; only the evaluation is ours.",
}
"""What each way to find settings leaves open."""

TRUST = {
    "self-reported": "measured by those who publish it; nobody else has repeated it",
    "reproduced": "repeated on another machine, whose interval overlaps",
    "verified": "repeated and checked by the maintainers",
}
"""What each trust tier says."""
