"""What an executor and its workers say to each other through the environment."""

DIE_WITH_PARENT = "BENCH_DIE_WITH_PARENT"
"""Set by an executor whose workers must not outlive it, to the number of its process."""
