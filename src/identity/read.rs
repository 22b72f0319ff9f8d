//! Reading the identity of what is there now.
