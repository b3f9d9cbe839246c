"""Real parts and their stand-ins, side by side; each file names one vendor library. Only wiring knows them by name."""
