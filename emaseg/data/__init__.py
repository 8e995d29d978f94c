"""Data sets, the files they are made of, and the batches made of them.

Room: data. Three rooms share dataset.py (what a data set is), label_sets.py (class names and colours) and checks.py:

    sets/       what a data set is: one file for each published set, folders of one's own, packed files, drawn shapes
    files/      what a file holds: images, masks, .mat files, regions of an image; the one place that knows formats
    pipeline/   what a batch is made of: resize, crop, colour, loading; knows nothing of the sets
"""
