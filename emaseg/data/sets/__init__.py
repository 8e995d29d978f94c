"""Data sets: what the recipe's [data] names, as a list of samples; build.py opens the one that is named.

Room: data/sets.
"""
