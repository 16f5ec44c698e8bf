from bench import Entry, hookimpl


@hookimpl
def bench_algorithms():
    target, paper, summary = "bench_signum.signum:Signum", "arXiv:1802.04434", "step by the sign of the momentum"
    return [Entry(name="signum", target=target, track="optimizer", paper=paper, summary=summary)]
