"""What asyncdicom is measured by: ratios against a peer measured in the same run, in turn, and a few figures with a unit.

``make bench`` runs all rows; ``make bench ARGS="--runs 3 P5"`` some of them. Absolute figures are not stable on a shared
machine, so what neighbours in time say of each other is what counts: the median over the turns, with minimum and maximum.
"""
