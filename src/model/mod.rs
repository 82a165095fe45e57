//! What is loaded: one classifier, ready to be asked.
