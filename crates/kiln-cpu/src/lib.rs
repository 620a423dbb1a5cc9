//! The fast CPU backend of Kiln.
