"""Workstation side of the models: the bundles that ship, and how they are trained."""
