"""Export: a trained network as a file that other programs run, proven against the network it was made from.

Room: exporting; what reads and runs the files is in exported/.

    request.py    what may be asked for, and why some of it is refused       (no torch)
    usage.py      how an exported file is used: a command, a few lines of Python  (no torch)
    network.py    the network as inference needs it: folded, without training's parts
    program.py    the network as a program, and the files that hold it
    quantise.py   a program with 8-bit convolutions
    verify.py     the written file against the network
    export.py     the verb
"""
