//! A scrub that hangs.
