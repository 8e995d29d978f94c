"""A training run on disk, and the list of the runs in a folder.

Room: runs. folder.py holds the layout, lock/ keeps a second command out, metrics_file.py and metrics_lines.py write what
was measured (records.py writes both, repair.py serves both, tensorboard.py the same as curves), evaluation_files.py the tables of an evaluation,
listing.py reads all runs of a folder. Checkpoints are read and written by checkpoint.py, which knows networks.
"""
