"""Export: a trained network as a file that other programs run, proven against the network it was made from.

Room: export; imports recipe, data, models, checkpoint, inference, evaluate, metrics, files, events, errors.

    request.py    what may be asked for, and why some of it is refused       (no torch)
    info.py       what an exported file says of itself, and reading that     (no torch)
    usage.py      how an exported file is used: a command, a few lines of Python  (no torch)
    network.py    the network as inference needs it: folded, without training's parts
    program.py    the network as a program, and the files that hold it
    quantise.py   a program with 8-bit convolutions
    verify.py     the written file against the network
    archive.py    the archive of a .pt2: one strict reading, and an own one for PyTorch     (no torch)
    protobuf.py   protocol-buffer messages, read strictly                     (no torch)
    operations.py what a .pt2 may compute                                     (no torch)
    check_pt2.py  what the texts in a .pt2 may say                            (no torch)
    check_onnx.py what an ONNX file may hold                                  (no torch)
    run_pt2.py    a .pt2 as a function of images
    run_onnx.py   an ONNX file as a session
    runtime.py    an exported file in the place of a network
    export.py     the verb
"""
