//! One operation fails, the disk is full, bits flip.
