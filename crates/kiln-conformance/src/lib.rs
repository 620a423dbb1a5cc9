//! One table of cases that checks every Kiln device against the reference.
