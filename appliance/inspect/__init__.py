"""inspectd's room: frame in, verdict out."""
