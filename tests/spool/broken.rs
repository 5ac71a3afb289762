//! Storages that break one rule each.
