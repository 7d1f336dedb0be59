"""The paper's printed numbers, and our records beside them."""
