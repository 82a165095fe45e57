//! Where tensors run: the only folder that names ONNX Runtime.
