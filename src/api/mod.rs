//! The door: HTTP in, problems and answers out.
