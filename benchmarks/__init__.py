"""What asyncdicom is measured by: every row a ratio against a peer, both measured in the same run, alternating.

``make bench`` runs all rows; ``make bench ARGS="--runs 3 P5"`` some of them. Absolute figures are not stable on a shared
machine, so the ratio of neighbours in time is what counts: its median, with minimum and maximum.
"""
