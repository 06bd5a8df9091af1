//! What the daemons share.
