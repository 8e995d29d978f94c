"""What training minimises.

Room: losses. cross_entropy.py is the published loss, in little memory; terms.py is a head's loss as [loss] has it.
"""
