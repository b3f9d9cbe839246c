"""The box itself: what machine it is, its sensors, what is plugged into it, how it is updated."""
