"""From predictions to a judgement: scores, baselines to hold them against, and a report that a person reads.

The rooms, each usable alone: ``metrics`` turns targets and probabilities into one frozen ``Metrics``; ``baselines``
says what a model without a transformer would have scored; ``report`` renders both, with everything needed to repeat
the run, as one HTML file and as a model card. Nothing here needs torch, and importing costs nothing but NumPy.
"""
