"""The box itself: what machine it is, how warm it runs, what throttles it."""
