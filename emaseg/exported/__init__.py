"""Exported files, read and run: everything that a program needs which only uses them.

Room: exported; below predict, evaluation of files and export.

    extra.py        the optional packages of ONNX files                                        (no torch)
    info.py         what an exported file says of itself                                       (no torch)
    pt2_archive.py  the archive of a .pt2: one strict reading, and one of our own for PyTorch  (no torch)
    operations.py   what a .pt2 may compute                                                    (no torch)
    check_pt2.py    what the texts in a .pt2 may say                                           (no torch)
    protobuf.py     protocol-buffer messages, read strictly                                    (no torch)
    check_onnx.py   what an ONNX file may hold                                                 (no torch)
    run_pt2.py      a .pt2 as a function of images
    run_onnx.py     an ONNX file as a session
    runtime.py      an exported file in the place of a network
"""
