//! A model file becomes graphs: pure, no I/O, no async.
