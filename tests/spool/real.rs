//! The verbs, on a real directory.
