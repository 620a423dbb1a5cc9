//! Every Kiln operation, slow and obvious, in f64: the definition of right.
