"""``irlops demo``: the whole loop on one machine, watched by somebody who sees it for the first time.

folder      the output folder: ours or nobody's, and what lies where in it
loop        the stages, from the demonstrations to an answer of the gateway
progress    what workers print, as a fraction done and a few words
memory      the most memory that all processes held together
results     numbers of the finished stages, as sentences and as the final table
screen      everything that is printed
"""
