"""Exported files, read and run: everything that a program needs which only uses them.

Room: exported; below predict, evaluation of files and export.

    extra.py      the optional packages of ONNX files                 (no torch)
    info.py       what an exported file says of itself                (no torch)
    runtime.py    an exported file in the place of a network
"""
