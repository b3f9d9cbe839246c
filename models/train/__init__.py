"""python -m models.train: trains a bundle from twin images or from folders of photographs (extra [train])."""
