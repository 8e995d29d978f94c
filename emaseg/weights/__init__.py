"""Weights of networks: the released ones fetched and kept, and every weight file read so that it can do no harm.

Room: weights.

    released.py        what others have published: released.toml                            (no torch)
    backbone.py        which file backbone.weights means, and fetching it                   (no torch)
    init_from.py       which file train.init_from means                                     (no torch)
  fetching: no server, no other user and no kill leaves wrong weights under a right name
    download.py        the verb: one process fetches, the others wait                       (no torch)
    transfer.py        one address: resumed, tried again, its bytes checked as they arrive  (no torch)
    web.py             one answer of a server, in bounded time and memory                   (no torch)
    address.py         addresses whose password is never shown                              (no torch)
    partial.py         what has arrived so far, and of which version                        (no torch)
    lock.py            one process at a time                                                (no torch)
    opened.py          no link, pipe or other user's file is opened in a shared folder      (no torch)
    cache.py           the files here: found, verified, put into place                      (no torch)
    record.py          the hash that a file had when it was first seen                      (no torch)
  reading: no file runs code, fills the memory or gives numbers that were not written
    kind.py            what a file is that is no weight file                                (no torch)
    weight_archive.py  the members of a weight file and the hash that ends it               (no torch)
    program.py         what its pickle would do                                             (no torch)
    reading.py         its tensors, numbers and text
    contents.py        what one of our checkpoints must hold
    convert.py         other systems' names, mapped to ours
    fits.py            which network some weights are of
"""
