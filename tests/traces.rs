//! The trace of a save, from the document to the wire.
