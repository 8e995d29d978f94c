"""Several processes that do the work of one: which one this is, how they start, what they tell each other.

Room: distributed. ranks.py reads which process this is; launch.py starts the processes; collectives.py adds and averages
over them; lockstep.py lets rank 0 say what all do next. What training shares out is in training/replicas.py.
"""
