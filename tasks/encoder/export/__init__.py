"""Export of trained towers: ONNX graphs, int8, tokenizer, MLflow flavor, runtimes."""
