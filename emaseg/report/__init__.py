"""The pages on which people look at a run: report.html of one, and of several side by side.

Room: report.
"""
