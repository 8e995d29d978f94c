"""How good a network is: scored here, or zipped for a benchmark's server to score.

Room: evaluation. The scores themselves are in metrics/, the page that shows them in report/.
"""
