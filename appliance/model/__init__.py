"""Models: the bundle, the one definition of preprocess, golden vectors, the float graph behind a quantised one."""
