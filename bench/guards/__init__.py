"""The guards of the measurement: what algorithm code must not do, seen where it can be seen.

An algorithm runs in the process that measures it. Nothing here makes that safe against malice; docs/guards.md says what
is seen, when, and what is not. Each guard has a module of its own:

``settings``   what torch is set to, around every call of a slot
``draws``      the global random generators, around calls that have no business with them
``tensors``    a batch during a step; parameters, buffers and states during an evaluation
``fence``      files, network and frames that slot code must not reach, as it reaches for them
``opaque``     functions that algorithms may call without seeing what is behind them
``machine``    what the process is set to: cores, signals, tracing, back ends
``names``      functions and classes of torch, Python and this package that were replaced
``threads``    threads and child processes that outlive a call
``witness``    a second clock beside the one that measures
``place``      the private folder of a trial

:class:`~bench.guards.watch.Watch` looks through those that belong to the process, at every evaluation.
"""
