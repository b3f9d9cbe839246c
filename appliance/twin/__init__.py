"""The simulated line: belt, parts, scene, photo-eye, gate, bins, trouble, scoring. Only __main__ and tests know it."""
