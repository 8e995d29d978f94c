"""Training: the loop, its step, and everything that begins, continues, records or forecasts one.

Room: training. train.py is the loop; run_state.py what it holds in memory; step.py one step, with optim.py, compute.py,
weight_average.py and replicas.py; saving.py, resuming.py and start_weights.py bring weights to and from disk; dry_run.py
and scaling.py forecast; follow.py is what the other ranks do.
"""
