"""stub"""
def rehearse_fast(o, out): raise ValueError("x")
